"""Adversarial examples of a data set against one model: images read once, attacked, and handed on batch by batch."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import count, tee
from typing import IO

import torch
from torch import Tensor, nn

from coprobe.attacks.base import ATTACKS, Attack, StepAttack
from coprobe.core.engine import FULL, BatchSize, Progress, in_batches, kind_of, silent
from coprobe.core.processes import ALONE, Processes
from coprobe.core.randomness import key_of, seeded
from coprobe.data import Dataset
from coprobe.data.stream import ImageBatch, bounds, stream
from coprobe.errors import InputError, RunError
from coprobe.models.classifier import owning_input

#: The spec under which a batch holds its unperturbed images.
CLEAN = "clean"


@dataclass(frozen=True)
class AdversarialBatch:
    """Images and labels on the device, for the metrics.

    Attributes:
        start: the index of the first image in the data set; the others follow it.
        labels: int64, batch.
        images: an attack's spec, or `clean`, to images in [0, 1], batch × channels × height × width.
        trajectories: an attack's spec to its iterates x_0 … x_T, each like the images, where these were asked for.
        drawn_by: see `drawing`; None for models that draw nothing.
    """

    start: int
    labels: Tensor
    images: Mapping[str, Tensor]
    trajectories: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    drawn_by: Callable[[int, str], AbstractContextManager[None]] | None = field(default=None, repr=False)

    def drawing(self, what: str) -> AbstractContextManager[None]:
        """A block in which a model that draws random numbers gets those of this batch and of `what` is measured."""
        return nullcontext() if self.drawn_by is None else self.drawn_by(self.start, what)

    @property
    def indices(self) -> Tensor:
        """Where in the data set each image stands, int64 (batch,), on the device."""
        return torch.arange(self.start, self.start + len(self.labels), device=self.labels.device)

    def part(self, first: int, stop: int) -> AdversarialBatch:
        """Some consecutive images of it, counted from 0."""
        images = {spec: images[first:stop] for spec, images in self.images.items()}
        steps = {spec: [x_t[first:stop] for x_t in iterates] for spec, iterates in self.trajectories.items()}
        return AdversarialBatch(self.start + first, self.labels[first:stop], images, steps, self.drawn_by)


@dataclass(frozen=True)
class AdversarialExamples:
    """Clean and adversarial images, batch by batch in the order of the data set; every pass reads each image once.

    Args:
        model: what is attacked (white box), images in [0, 1] to logits.
        dataset: what is perturbed.
        attacks: attacks with distinct specs.
        batch_size: images at once; None finds one that fits (see `engine.BatchSize`).
        device: where the model is.
        seed: of the attacks; an image gets the same random numbers in whatever batch it is.
        trajectories: specs of those attacks of which every iterate is wanted, too; of several restarts the first.
        spool: where crafted images are put aside and found again, to be shared by examples of the same model, data
            set and settings; None crafts anew in every pass (the same images).
        progress: shows how many images of a pass are done.
        plain: take every image of a batch through all steps of its attack, instead of filling the places of those
            that are done with the next ones. The images are the same, see `batching`.
        together: so many images are attacked and measured together, no more and no fewer but at the end, and none
            leaves early, for models whose logits depend on the other images of a batch; None for others.
        draws: seed torch's, numpy's and Python's generators before every batch, for models that draw from them.
        processes: those that share the images; each goes through its own shard.

    Raises:
        InputError: the trajectories of an attack that hands out no steps; a batch size below 1.
    """

    model: nn.Module
    dataset: Dataset
    attacks: Sequence[Attack]
    batch_size: int | None = None
    device: torch.device | str = "cpu"
    seed: int = 0
    trajectories: Collection[str] = ()
    spool: Spool | None = None
    progress: Progress = silent
    plain: bool = False
    together: int | None = None
    draws: bool = False
    processes: Processes = ALONE
    #: Shared by everything that is done with the batches.
    size: BatchSize = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for attack in self.attacks:
            if attack.spec in self.trajectories and not isinstance(attack, StepAttack):
                stepping = ", ".join(one.name for one in ATTACKS.entries() if issubclass(one.value, StepAttack))
                raise InputError(f"attack '{attack.spec}' does not hand out its steps; choose from {stepping}")
        kind = kind_of(self.model, self.dataset.image_shape)
        size = self.batch_size if self.together is None else self.together
        few_sizes = getattr(self.model, "compiled", False)
        object.__setattr__(self, "model", owning_input(self.model))
        object.__setattr__(self, "size", BatchSize(size, self.device, kind, few_sizes=few_sizes))

    @property
    def shard(self) -> tuple[int, int]:
        """First image and end of this process's share: not so small that it would be computed otherwise."""
        unit = math.lcm(FULL, self.together or 1, *(attack.unit(self.size.now) for attack in self.attacks))
        return self.processes.shard(len(self.dataset), unit, FULL)

    def __iter__(self) -> Iterator[AdversarialBatch]:
        spool = self.spool
        first, stop = self.shard
        ranges = spool.of(first, stop) if spool else []
        ranges = ranges or list(bounds(first, stop, self.size.now))
        inputs = tee(stream(self.dataset, ranges, self.device), len(self.attacks) + 1)
        crafted = {
            attack.spec: spool.read(attack, self.device)
            if spool and attack in spool and attack.spec not in self.trajectories
            else self.craft(attack, batches)
            for attack, batches in zip(self.attacks, inputs[1:], strict=True)
        }
        writing = spool.writing(ranges, [attack for attack in self.attacks if attack not in spool]) if spool else None
        label = ", ".join(attack.label for attack in self.attacks) or "clean images"
        with self.progress(label, stop - first) as advance:
            for batch in inputs[0]:
                steps = {spec: next(iterates) for spec, iterates in crafted.items()}
                images = {spec: iterates[-1] for spec, iterates in steps.items()}
                if writing:
                    writing.put(images)
                trajectories = {spec: steps[spec] for spec in self.trajectories}
                images = {CLEAN: batch.images, **images}
                yield AdversarialBatch(int(batch.indices[0]), batch.labels, images, trajectories, self.drawing)
                advance(len(batch))
        if writing:
            writing.complete()

    def craft(self, attack: Attack, batches: Iterator[ImageBatch]) -> Iterator[list[Tensor]]:
        """Per batch the adversarial images of one attack, alone in a list, or behind the iterates before them."""
        if attack.spec in self.trajectories:
            assert isinstance(attack, StepAttack)
            return (self._trajectory(attack, batch) for batch in batches)
        if (self.plain or self.together) and isinstance(attack, StepAttack):  # the others have only one way
            return ([self._plainly(attack, batch)] for batch in batches)
        if self.draws:
            return ([x_adv] for x_adv in self._seeded(attack, batches))
        return ([x_adv] for x_adv in attack.stream(self.model, batches, self.seed, self.size))

    def _plainly(self, attack: Attack, batch: ImageBatch) -> Tensor:
        def work(first: int, stop: int) -> Tensor:
            part = batch.part(first, stop)
            with self.drawing(int(part.indices[0])):
                return attack(self.model, part.images, part.labels, seed=self.seed, indices=part.indices, plain=True)

        return torch.cat(list(in_batches(len(batch), work, self.size)))

    def _seeded(self, attack: Attack, batches: Iterator[ImageBatch]) -> Iterator[Tensor]:
        """As `attack.stream`, which draws for one batch after the other."""
        crafted = attack.stream(self.model, batches, self.seed, self.size)
        for start in count(self.shard[0], self.size.now):
            with self.drawing(start):
                x_adv = next(crafted, None)
            if x_adv is None:
                return
            yield x_adv

    def drawing(self, start: int, what: str = "") -> AbstractContextManager[None]:
        """A block in which a model that draws random numbers gets those of the batch that starts at this image.

        Those of an attack and of what is measured are others, so that no attack knows what will be drawn.
        """
        if not self.draws:
            return nullcontext()
        return seeded(key_of(self.seed, f"network: {what}" if what else "network", start), self.device)

    def _trajectory(self, attack: StepAttack, batch: ImageBatch) -> list[Tensor]:
        def work(first: int, stop: int) -> list[Tensor]:
            part = batch.part(first, stop)
            with self.drawing(int(part.indices[0])):
                return list(attack.steps(self.model, part.images, part.labels, seed=self.seed, indices=part.indices))

        parts = list(in_batches(len(batch), work, self.size))
        return [torch.cat(iterates) for iterates in zip(*parts, strict=True)]


class Spool:
    """Adversarial images in temporary files without a name, so that memory does not grow with them.

    They take 12 KB for each image of 32×32 pixels and each attack.
    """

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        self._files: dict[Attack, _Written] = {}

    def __contains__(self, attack: Attack) -> bool:
        return attack in self._files

    def of(self, first: int, stop: int) -> list[tuple[int, int]]:
        """First image and end of every batch of what is here; what is of another part of the data set is dropped."""
        if self._ranges and (self._ranges[0][0], self._ranges[-1][1]) != (first, stop):
            self._ranges, self._files = [], {}
        return self._ranges

    def same(self, attack: Attack) -> Attack:
        """The attack that crafted what is here for an equal one, with its `stages`; else the given one."""
        return next((crafted for crafted in self._files if crafted == attack), attack)

    def read(self, attack: Attack, device: torch.device | str) -> Iterator[list[Tensor]]:
        """The images of an attack batch by batch, on the device."""
        return ([x_adv] for x_adv in self._files[attack].read(device))

    def writing(self, ranges: list[tuple[int, int]], attacks: Sequence[Attack]) -> _Pass:
        """A pass that puts the images of these attacks aside; nothing of it is found before it is complete."""
        return _Pass(self, ranges, {attack: _Written() for attack in attacks})

    def keep(self, ranges: list[tuple[int, int]], files: Mapping[Attack, _Written]) -> None:
        """Take over what a complete pass has written."""
        self._ranges = ranges
        self._files.update(files)


@dataclass(frozen=True)
class _Pass:
    spool: Spool
    ranges: list[tuple[int, int]]
    files: Mapping[Attack, _Written]

    def put(self, images: Mapping[str, Tensor]) -> None:
        for attack, file in self.files.items():
            file.put(images[attack.spec])

    def complete(self) -> None:
        self.spool.keep(self.ranges, self.files)


class _Written:
    """Batches of images in a temporary file, in float32."""

    def __init__(self) -> None:
        with _room():
            self._file: IO[bytes] = tempfile.TemporaryFile(prefix="coprobe-")  # noqa: SIM115 - closed with this
        self._shapes: list[torch.Size] = []

    def put(self, images: Tensor) -> None:
        with _room():
            self._file.write(images.float().cpu().contiguous().numpy().data)
            self._file.flush()
        self._shapes.append(images.shape)

    def read(self, device: torch.device | str) -> Iterator[Tensor]:
        place = 0
        for shape in self._shapes:
            self._file.seek(place)  # another reader may have moved it
            loaded = torch.empty(shape)
            place += self._file.readinto(loaded.numpy().data)  # type: ignore[attr-defined]
            yield loaded.to(device)


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
