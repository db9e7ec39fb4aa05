"""Images on their way through the steps of an attack: finished ones leave, the next ones take their places."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from coprobe.core.engine import FULL, BatchSize
from coprobe.core.randomness import ImageRandomness

#: What an attack holds back until the images before it are done takes no more than so many bytes.
_HELD_BACK = 32 * 2**20


@dataclass(frozen=True)
class Feed:
    """Images that an attack goes through, in portions.

    Args:
        read: from first and end of a range to its images, float (batch, channels, height, width) in [0, 1], and its
            int64 labels (batch,).
        first: index of the first image.
        stop: index after the last one.
        portion: images that are read and handed out together.
        randomness: from int64 indices (batch,) to the random numbers of these images.
    """

    read: Callable[[int, int], tuple[Tensor, Tensor]]
    first: int
    stop: int
    portion: int
    randomness: Callable[[Tensor], ImageRandomness]

    def portions(self) -> Iterator[tuple[int, int]]:
        """First and end of every portion; the last two share their images if the last would have less than 16."""
        start = self.first
        while (left := self.stop - start) > 0:
            is_short = 2 * FULL <= self.portion < left < self.portion + FULL
            stop = start + (left // 2 if is_short else min(left, self.portion))
            yield start, stop
            start = stop


class Step(NamedTuple):
    """What one step made of a batch.

    Attributes:
        points: the images after it, (batch, channels, height, width).
        moved: bool (batch,), whether it moved them; None if it moved all.
    """

    points: Tensor
    moved: Tensor | None


#: From images, their present points, labels, random numbers and the number of steps that each has taken (int64,
#: batch), to the next step.
Advance = Callable[[Tensor, Tensor, Tensor, ImageRandomness, Tensor], Step]


@dataclass
class _Pool:
    """Images on their way, the oldest first; `index` and `taken` (steps so far) stay on the host."""

    x: Tensor
    y: Tensor
    point: Tensor
    index: Tensor
    taken: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def of(self, rows: Tensor | slice) -> _Pool:
        return _Pool(*(_chosen(getattr(self, field.name), rows) for field in fields(self)))

    def then(self, other: _Pool) -> _Pool:
        if not len(other):
            return self
        return _Pool(*(torch.cat([getattr(self, field.name), getattr(other, field.name)]) for field in fields(self)))


def _chosen(tensor: Tensor, rows: Tensor | slice) -> Tensor:
    return tensor[rows] if isinstance(rows, slice) else tensor[rows.to(tensor.device, non_blocking=True)]


def convey(
    feed: Feed, begin: Callable[[Tensor, ImageRandomness], Tensor], advance: Advance, iterations: int, size: BatchSize
) -> Iterator[Tensor]:
    """Take every image through `iterations` steps, or until a step doesn't move it; yield them portion by portion.

    The batch is kept full: an image that is done leaves, and the next one of the feed takes its place, whatever
    portion it belongs to. How far this runs ahead of the oldest portion is bounded in bytes. Each image gets what it
    would get in a batch of its own portion, bit for bit where the device computes an image alike in any batch (see
    `BatchSize.padded`).

    Args:
        feed: the images.
        begin: from images and their random numbers to the points where the attack starts.
        advance: one step; called with at most `size.now` images.
        iterations: steps of an image at most.
        size: how many images at once; halved where memory runs out.
    """
    coming = feed.portions()
    done: dict[int, Tensor] = {}  # by the portion's start, filled row by row
    missing: dict[int, int] = {}
    pool: _Pool | None = None
    exhausted = False
    while not exhausted or done:
        while not exhausted and (pool is None or len(pool) < size.now) and _may_run_ahead(done):
            portion = next(coming, None)
            if portion is None:
                exhausted = True
                break
            fresh = _read(feed, portion, begin)
            done[portion[0]], missing[portion[0]] = fresh.point.clone(), len(fresh)
            pool = fresh if pool is None else pool.then(fresh)
        if pool is not None and len(pool):
            here = pool.of(slice(0, size.now))
            step = size.attempt(len(here), lambda here=here: _stepped(feed, here, advance, size.padded(len(here))))  # type: ignore[misc]
            if step is None:
                continue
            here.point, here.taken = step[0].points, here.taken + 1
            leaves = here.taken == iterations
            if step[0].moved is not None:
                leaves |= ~step[0].moved.cpu()
            waiting = pool.of(slice(len(here), None))
            if leaves.any():
                _put(here.of(leaves.nonzero()[:, 0]), done, missing)
                here = here.of((~leaves).nonzero()[:, 0])
            pool = here.then(waiting)
        while done and missing[oldest := next(iter(done))] == 0:
            del missing[oldest]
            yield done.pop(oldest)


def _may_run_ahead(done: dict[int, Tensor]) -> bool:
    return len(done) < 2 or sum(portion.nbytes for portion in done.values()) < _HELD_BACK


def _read(feed: Feed, portion: tuple[int, int], begin: Callable[[Tensor, ImageRandomness], Tensor]) -> _Pool:
    x, y = feed.read(*portion)
    index = torch.arange(*portion)
    point = begin(x, feed.randomness(index.to(x.device)))
    return _Pool(x, y, point, index, torch.zeros_like(index))


def _stepped(feed: Feed, pool: _Pool, advance: Advance, padded: int) -> Step:
    """One step of all images in the pool, in a batch that is filled up with copies."""
    count = len(pool)
    if padded > count:
        pool = pool.of(torch.arange(padded) % count)
    device = pool.x.device
    randomness = feed.randomness(pool.index.to(device, non_blocking=True))
    step = advance(pool.x, pool.point, pool.y, randomness, pool.taken.to(device, non_blocking=True))
    return Step(step.points[:count], None if step.moved is None else step.moved[:count])


def _put(left: _Pool, done: dict[int, Tensor], missing: dict[int, int]) -> None:
    """Put the images that are done into their portions."""
    begun = torch.tensor(list(done))
    starts = begun[torch.searchsorted(begun, left.index, right=True) - 1]
    for start in starts.unique().tolist():
        rows = (starts == start).nonzero()[:, 0]
        places = (left.index[rows] - start).to(left.point.device, non_blocking=True)
        done[start][places] = _chosen(left.point, rows)
        missing[start] -= len(rows)
