"""Adversarial examples of a data set against one model, crafted once and used by everything that needs them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO

import torch
from torch import Tensor, nn

from coprobe.attacks.base import PURPOSE, Attack, StepAttack
from coprobe.attacks.conveyor import Feed
from coprobe.core.engine import BatchSize, in_batches, kind_of
from coprobe.core.randomness import ImageRandomness
from coprobe.data import Dataset, Reader
from coprobe.errors import RunError

#: The spec under which a batch holds its unperturbed images.
CLEAN = "clean"

#: Sees the iterates x_0, x_1, … of an attack on a batch as they come, and passes them on. It is given the index of the
#: first image, the clean images, and the iterates.
Follower = Callable[[int, Tensor, Iterator[Tensor]], Iterator[Tensor]]


def clean_images(dataset: Dataset, start: int, stop: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Images start … stop − 1 as floats in [0, 1] and their labels, on the device."""
    return dataset.images[start:stop].to(device).float().div_(255), dataset.labels[start:stop].to(device)


@dataclass(frozen=True)
class AdversarialBatch:
    """Images and labels on the device; `images` maps an attack's spec, or `clean`, to a tensor N×C×H×W in [0, 1].

    `start` is the index of the first image in the data set; the others follow it.
    """

    start: int
    labels: Tensor
    images: Mapping[str, Tensor]

    @property
    def indices(self) -> Tensor:
        """Where in the data set each image stands, int64 (batch,), on the device."""
        return torch.arange(self.start, self.start + len(self.labels), device=self.labels.device)

    def part(self, first: int, stop: int) -> AdversarialBatch:
        """Some consecutive images of it, counted from 0."""
        images = {spec: images[first:stop] for spec, images in self.images.items()}
        return AdversarialBatch(self.start + first, self.labels[first:stop], images)


@dataclass
class AdversarialExamples:
    """Clean and adversarial images, batch by batch in the order of the data set.

    Args:
        model: what is attacked (white box), images in [0, 1] to logits.
        dataset: what is perturbed.
        attacks: attacks with distinct specs.
        batch_size: images at once; None finds one that fits (see `engine.BatchSize`).
        device: where the model is.
        seed: of the attacks; an image gets the same random numbers in whatever batch it is.
        keep: put what was crafted aside in a temporary file, so that a second pass crafts nothing again; without it
            every pass crafts anew (the same images).
        progress: called with the number of images after every batch of a crafting pass.
        plain: take every image of a batch through all steps of its attack, instead of filling the places of those
            that are done with the next ones. The images are the same, see `conveyor.convey`.
        stretch: first image and end of the part of the data set that is gone through; None for all of it.

    Attributes:
        followers: by spec, who wants to see the iterates of an attack without restarts, each on a batch of its own.
    """

    model: nn.Module
    dataset: Dataset
    attacks: Sequence[Attack]
    batch_size: int | None = None
    device: torch.device | str = "cpu"
    seed: int = 0
    keep: bool = False
    progress: Callable[[int], None] | None = None
    plain: bool = False
    stretch: tuple[int, int] | None = None
    followers: dict[str, list[Follower]] = field(default_factory=dict, init=False, repr=False)
    _shelf: _Shelf | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        few_sizes = getattr(self.model, "compiled", False)
        kind = kind_of(self.model, self.dataset.image_shape)
        #: Shared by everything that is done with the batches.
        self.size = BatchSize(self.batch_size, self.device, kind, few_sizes=few_sizes)

    @property
    def put_aside(self) -> bool:
        """Whether the images are there, so that a pass crafts nothing."""
        return self._shelf is not None

    def __iter__(self) -> Iterator[AdversarialBatch]:
        if self._shelf is not None:
            yield from self._shelf.batches(self.device)
            return
        shelf = _Shelf() if self.keep else None
        for batch in self._crafted():
            if shelf is not None:
                shelf.put(batch)
            yield batch
            if self.progress:
                self.progress(len(batch.labels))
        self._shelf = shelf

    def _crafted(self) -> Iterator[AdversarialBatch]:
        first, stop = self.stretch or (0, len(self.dataset))
        with Reader(self.dataset, self.device, ahead=not self.plain) as read:
            feed = Feed(read, first, stop, self.size.now, lambda indices: ImageRandomness(self.seed, PURPOSE, indices))
            streams = {attack.spec: self._stream(attack, feed) for attack in self.attacks}
            for start, end in feed.portions():
                clean, labels = read(start, end)
                crafted = {spec: next(stream) for spec, stream in streams.items()}
                yield AdversarialBatch(start, labels, {CLEAN: clean, **crafted})

    def _stream(self, attack: Attack, feed: Feed) -> Iterator[Tensor]:
        if attack.spec in self.followers:
            return self._by_portion(feed, lambda start, x, y: self._followed(attack, start, x, y))
        if self.plain and isinstance(attack, StepAttack):  # the others have only one way
            return self._by_portion(
                feed, lambda start, x, y: attack(self.model, x, y, seed=self.seed, indices=_from(start, x), plain=True)
            )
        return attack.over(self.model, feed, self.size)

    def _by_portion(self, feed: Feed, craft: Callable[[int, Tensor, Tensor], Tensor]) -> Iterator[Tensor]:
        for start, end in feed.portions():
            x, y = feed.read(start, end)

            def work(first: int, last: int, start: int = start, x: Tensor = x, y: Tensor = y) -> Tensor:
                return craft(start + first, x[first:last], y[first:last])

            yield torch.cat(list(in_batches(end - start, work, self.size)))

    def _followed(self, attack: Attack, start: int, x: Tensor, y: Tensor) -> Tensor:
        assert isinstance(attack, StepAttack)
        steps = attack.steps(self.model, x, y, seed=self.seed, indices=_from(start, x))
        for follower in self.followers[attack.spec]:
            steps = follower(start, x, steps)
        *_, last = steps
        return last


def _from(start: int, x: Tensor) -> Tensor:
    return torch.arange(start, start + len(x), device=x.device)


class _Shelf:
    """Batches in a temporary file without a name, so that memory does not grow with them."""

    def __init__(self) -> None:
        with _room():
            self._file: IO[bytes] = tempfile.TemporaryFile(prefix="coprobe-")  # noqa: SIM115 - closed with the shelf
        self._batches: list[tuple[int, Tensor, dict[str, torch.Size]]] = []

    def put(self, batch: AdversarialBatch) -> None:
        with _room():
            for images in batch.images.values():
                self._file.write(images.float().cpu().contiguous().numpy().data)
            self._file.flush()
        shapes = {spec: images.shape for spec, images in batch.images.items()}
        self._batches.append((batch.start, batch.labels.cpu(), shapes))

    def batches(self, device: torch.device | str) -> Iterator[AdversarialBatch]:
        place = 0
        for start, labels, shapes in self._batches:
            images = {}
            for spec, shape in shapes.items():
                self._file.seek(place)
                loaded = torch.empty(shape)
                place += self._file.readinto(loaded.numpy().data)  # type: ignore[attr-defined]
                images[spec] = loaded.to(device)
            yield AdversarialBatch(start, labels.to(device), images)


@contextmanager
def _room() -> Iterator[None]:
    """Say what to do where the temporary file finds no room."""
    try:
        yield
    except OSError as error:
        where = tempfile.tempdir or "the directory of temporary files"
        raise RunError(
            f"{where}: {error.strerror or error}, and the adversarial images need room there; "
            "set TMPDIR to another directory, or lower --limit"
        ) from None
