"""Continuous batching: images that an attack is done with leave the batch, and the next ones take their places."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from coprobe.core.engine import BatchSize
from coprobe.core.randomness import ImageRandomness
from coprobe.data.stream import ImageBatch

#: What an attack holds back until the images before it are done takes no more than so many bytes.
_HELD_BACK = 32 * 2**20

#: What an attack knows of each image, by name: `x_adv`, the present iterate, and whatever else it keeps from step to
#: step (a momentum, say). Tensors (batch, …).
State = Mapping[str, Tensor]


class Step(NamedTuple):
    """What one step made of a batch.

    Attributes:
        state: after it.
        moved: bool (batch,), whether the image goes on; None if all do.
    """

    state: State
    moved: Tensor | None


#: From images, labels, their random numbers, their state, and the number of steps that each has taken (int64, batch).
TakeStep = Callable[[Tensor, Tensor, ImageRandomness, State, Tensor], Step]


@dataclass(frozen=True)
class _Pool:
    """Images on their way, the oldest first; `place` (in the stream) and `taken` (steps so far) stay on the host."""

    batch: ImageBatch
    state: State
    place: Tensor
    taken: Tensor

    def __len__(self) -> int:
        return len(self.place)

    def rows(self, rows: Tensor | slice) -> _Pool:
        there = rows if isinstance(rows, slice) else rows.to(self.batch.images.device, non_blocking=True)
        batch = ImageBatch(self.batch.images[there], self.batch.labels[there], self.batch.indices[there])
        return _Pool(
            batch, {name: value[there] for name, value in self.state.items()}, self.place[rows], self.taken[rows]
        )

    def then(self, other: _Pool) -> _Pool:
        if not len(other):
            return self
        mine, others = self.batch, other.batch
        batch = ImageBatch(
            torch.cat([mine.images, others.images]),
            torch.cat([mine.labels, others.labels]),
            torch.cat([mine.indices, others.indices]),
        )
        state = {name: torch.cat([value, other.state[name]]) for name, value in self.state.items()}
        return _Pool(batch, state, torch.cat([self.place, other.place]), torch.cat([self.taken, other.taken]))


class _Unfinished:
    """A batch of the stream of which some images are still on their way."""

    def __init__(self, batch: ImageBatch, x_adv: Tensor) -> None:
        self.batch, self.x_adv, self.missing = batch, x_adv.clone(), len(batch)

    def put(self, rows: Tensor, x_adv: Tensor) -> None:
        self.x_adv[rows.to(x_adv.device, non_blocking=True)] = x_adv
        self.missing -= len(rows)


def in_full_batches(
    batches: Iterator[ImageBatch],
    seed: tuple[int, str],
    start: Callable[[Tensor, ImageRandomness], State],
    step: TakeStep,
    iterations: int,
    size: BatchSize,
    left: Callable[[State], object] = lambda state: None,
) -> Iterator[tuple[ImageBatch, Tensor]]:
    """Take every image through `iterations` steps, or until a step doesn't move it; yield them batch by batch.

    The batch that is worked on is kept full: an image that is done leaves, and the next one of the stream takes its
    place. How far this runs ahead of the oldest batch is bounded in bytes. Each image gets what it would get in a batch
    of its own, bit for bit where the device computes an image alike in any batch (see `BatchSize.padded`).

    Args:
        batches: the images.
        seed: and purpose of the random numbers.
        start: from images and their random numbers to the state where the attack begins.
        step: called with at most `size.now` images.
        iterations: steps of an image at most.
        size: how many images at once; halved where memory runs out.
        left: told the last state of images that leave.

    Yields:
        Each batch of the stream, and its adversarial images.
    """
    unfinished: dict[int, _Unfinished] = {}  # by the place of the first image
    pool: _Pool | None = None
    begun, exhausted = 0, False
    while not exhausted or unfinished:
        while not exhausted and (pool is None or len(pool) < size.now) and _may_run_ahead(unfinished):
            batch = next(batches, None)
            if batch is None:
                exhausted = True
                break
            place = torch.arange(begun, begun + len(batch))
            fresh = _Pool(
                batch, start(batch.images, ImageRandomness(*seed, batch.indices)), place, torch.zeros_like(place)
            )
            unfinished[begun] = _Unfinished(batch, fresh.state["x_adv"])
            pool, begun = fresh if pool is None else pool.then(fresh), begun + len(batch)
        if pool is not None and len(pool):
            here = pool.rows(slice(0, size.now))
            taken = size.attempt(len(here), lambda here=here: _stepped(here, seed, step, size.padded(len(here))))  # type: ignore[misc]
            if taken is None:
                continue
            here = _Pool(here.batch, taken[0].state, here.place, here.taken + 1)
            leaves = here.taken == iterations
            if taken[0].moved is not None:
                leaves |= ~taken[0].moved.cpu()
            waiting = pool.rows(slice(len(here), None))
            if leaves.any():
                leaving = here.rows(leaves.nonzero()[:, 0])
                left(leaving.state)
                _put(leaving, unfinished)
                here = here.rows((~leaves).nonzero()[:, 0])
            pool = here.then(waiting)
        while unfinished and unfinished[oldest := next(iter(unfinished))].missing == 0:
            done = unfinished.pop(oldest)
            yield done.batch, done.x_adv


def _may_run_ahead(unfinished: Mapping[int, _Unfinished]) -> bool:
    return len(unfinished) < 2 or sum(one.x_adv.nbytes for one in unfinished.values()) < _HELD_BACK


def _stepped(pool: _Pool, seed: tuple[int, str], step: TakeStep, padded: int) -> Step:
    """One step of all images in the pool, in a batch that is filled up with copies."""
    count = len(pool)
    if padded > count:
        pool = pool.rows(torch.arange(padded) % count)
    batch = pool.batch
    taken = pool.taken.to(batch.images.device, non_blocking=True)
    made = step(batch.images, batch.labels, ImageRandomness(*seed, batch.indices), pool.state, taken)
    state = {name: value[:count] for name, value in made.state.items()}
    return Step(state, None if made.moved is None else made.moved[:count])


def _put(left: _Pool, unfinished: Mapping[int, _Unfinished]) -> None:
    """Put the images that are done into their batches."""
    begun = torch.tensor(list(unfinished))
    starts = begun[torch.searchsorted(begun, left.place, right=True) - 1]
    for start in starts.unique().tolist():
        rows = (starts == start).nonzero()[:, 0]
        unfinished[start].put(left.place[rows] - start, left.rows(rows).state["x_adv"])
