"""What is looked at: a model, a batch of images, and a few passes that the checks share."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from coprobe.attacks import Attack, Ball
from coprobe.attacks.input_gradient import input_gradient
from coprobe.checkpoint import Checkpoint
from coprobe.core.engine import BatchSize, frozen, in_batches
from coprobe.core.randomness import key_of, seeded
from coprobe.data import Dataset, balanced_prefix, unit_floats
from coprobe.errors import InputError
from coprobe.models import Classifier

#: Images to look at.
IMAGES = 32
#: Of them for gradients, which cost thrice as much.
FEW = 16
#: How far two passes over an image may differ by rounding, as a share of the largest logit.
ROUNDING = 1e-3
#: Passes over the first images after which a coin that is tossed once a pass has fallen on both sides: in all but
#: 1 of 1,000 cases, with the other passes.
TOSSES, TOSSED = 8, 2


@dataclass(frozen=True)
class Subject:
    """A model and images, and what is meant to be done with them.

    Args:
        checkpoint: whose model is looked at, in float32; it is where the images shall go.
        dataset: its first images of each class are taken.
        ball: of the attacks.
        attacks: which are meant.
        nodes: where channels are meant to be recorded.
        device: where to work.
        batch_size: images at once, at most; None takes all.
        seed: of the random numbers of a network that draws some.
        form: makes the fast form, if there is one to be compared.
    """

    checkpoint: Checkpoint
    dataset: Dataset
    ball: Ball
    attacks: Sequence[Attack] = ()
    nodes: Sequence[str] = ()
    device: torch.device | str = "cpu"
    batch_size: int | None = None
    seed: int = 0
    form: Callable[[], Classifier] | None = None
    _kept: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    _attributes: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def model(self) -> Classifier:
        """What is looked at."""
        return self.checkpoint.model.to(self.device)

    @cached_property
    def sample(self) -> Dataset:
        """The images, as the data set keeps them."""
        return self.dataset.subset(balanced_prefix(self.dataset.labels, IMAGES))

    @cached_property
    def images(self) -> Tensor:
        """Float in [0, 1], on the device."""
        return unit_floats(self.sample.images.to(self.device))

    @cached_property
    def labels(self) -> Tensor:
        """Int64, on the device."""
        return self.sample.labels.to(self.device)

    @cached_property
    def full_batch(self) -> Tensor:
        """As many images as will be worked on at once, float in [0, 1], on the device."""
        size = min(len(self.dataset), max(2, BatchSize(self.batch_size, self.device).now))
        if size <= len(self.images):
            return self.images[:size]
        return unit_floats(self.dataset.images[:size].to(self.device))

    @contextmanager
    def kept(self) -> Iterator[None]:
        """A block of passes after which the network, its modes and all generators are as before."""
        network = self.model.network
        self._kept.update({name: buffer.detach().clone() for name, buffer in network.named_buffers()})
        self._attributes.update(_attributes(network))
        try:
            with seeded(key_of(self.seed, "check"), self.device), frozen(self.model):
                yield
        finally:
            _put_back(network, self._kept)
            self._kept.clear()
            for name in _moved(network, self._attributes):
                path, _, attribute = name.rpartition(".")
                setattr(network.get_submodule(path), attribute, self._attributes[name])
            self._attributes.clear()

    def logits(self, images: Tensor, model: nn.Module | None = None) -> Tensor:
        """Of one pass, or of as many as fit; float64 on the host."""

        def work(start: int, stop: int) -> Tensor:
            with torch.no_grad():
                outputs: Tensor = (model or self.model)(images[start:stop])
            return outputs.double().cpu()

        size = BatchSize(max(2, self.batch_size) if self.batch_size else None, self.device)
        return torch.cat(list(in_batches(len(images), work, size)))

    @cached_property
    def first_pass(self) -> tuple[Tensor, list[str], bool]:
        """Logits of all images, names of what the pass changed in the network, and whether it drew random numbers."""
        versions = _versions(self.model.network)
        before = _generators(self.device)
        logits = self.logits(self.images)
        drew = before != _generators(self.device)
        changed = [name for name, version in _versions(self.model.network).items() if versions.get(name) != version]
        return logits, [*changed, *filter(self._differs, self._kept)], drew

    def _differs(self, name: str) -> bool:
        now = dict(self.model.network.named_buffers()).get(name)
        return now is None or not _equal(now, self._kept[name])

    @cached_property
    def repeats(self) -> bool:
        """Whether all passes over the same images gave the same."""
        logits, _, _ = self.first_pass
        few = self.images[:TOSSED]
        others = [(logits, self.logits(self.images))]
        tossed = [self.logits(few) for _ in range(TOSSES)]
        others += [(tossed[0], one) for one in tossed[1:]]
        return all(same(one, other) for one, other in others)

    @cached_property
    def reseeded(self) -> bool:
        """Whether passes give the same with the same seeds; some pairs of passes, as coins agree by chance."""

        def seeded_pass(number: int) -> Tensor:
            with seeded(key_of(self.seed, "repeated", number), self.device):
                return self.logits(self.images[:TOSSED])

        return all(same(seeded_pass(number), seeded_pass(number)) for number in range(TOSSES))

    @property
    def moved(self) -> list[str]:
        """Names of plain attributes, such as counters, that are not as they were before the passes until now."""
        return _moved(self.model.network, self._attributes)

    @cached_property
    def gradients(self) -> Tensor | str:
        """Of the cross-entropy at a few images, (FEW, values); why there are none, if there are none."""
        images = self.images[:FEW]

        def work(start: int, stop: int) -> Tensor:
            labels = self.labels[start:stop]
            gradient, _ = input_gradient(
                self.model, images[start:stop], lambda logits: cross_entropy(logits, labels, reduction="none")
            )
            return gradient.flatten(1)

        try:
            return torch.cat(list(in_batches(len(images), work, BatchSize(self.batch_size, self.device))))
        except InputError as error:
            return str(error)


def same(one: Tensor, other: Tensor, tolerance: float = ROUNDING) -> bool:
    """Whether two tensors differ by no more than rounding."""
    finite = one[one.isfinite()]
    scale = max(1e-12, float(finite.abs().max())) if finite.numel() else 1.0
    return torch.allclose(one, other, rtol=0, atol=tolerance * scale, equal_nan=True)


def _versions(network: nn.Module) -> dict[str, tuple[int, int]]:
    """What changes with every write to a weight: which tensor it is, and how often it was written to.

    Batch norm writes to its buffers without counting; of these there are copies.
    """
    return {
        name: (id(weight), 0 if weight.is_inference() else weight._version)
        for name, weight in network.named_parameters()
    }


def _attributes(network: nn.Module) -> dict[str, Any]:
    """Numbers, tensors and lists that modules keep beside their weights and buffers, by name, as copies."""
    return {
        f"{path}.{name}" if path else name: _copied(value)
        for path, module in network.named_modules()
        for name, value in vars(module).items()
        if name != "training" and (isinstance(value, int | float | Tensor) or type(value) in (list, deque))
    }


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) is list:
        return [_copied(one) for one in value]
    return deque(map(_copied, value), value.maxlen) if type(value) is deque else value


def _moved(network: nn.Module, before: Mapping[str, Any]) -> list[str]:
    now = _attributes(network)
    return [name for name, value in before.items() if name in now and not _as_before(value, now[name])]


def _as_before(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return _equal(one, other)
    if isinstance(one, list | deque) and isinstance(other, list | deque):
        return len(one) == len(other) and all(map(_as_before, one, other))
    return one is other or (type(one) is type(other) and isinstance(one, int | float) and one == other)


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same, NaN where the other is NaN."""
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())


def _put_back(network: nn.Module, kept: dict[str, Tensor]) -> None:
    buffers = dict(network.named_buffers())
    with torch.no_grad():
        for name, value in kept.items():
            now = buffers.get(name)
            if now is not None and now.shape == value.shape and not _equal(now, value):
                now.copy_(value)


def _generators(device: torch.device | str) -> tuple[Any, ...]:
    """The states of the generators that other people's code draws from, as comparable values."""
    device = torch.device(device)
    cuda = torch.cuda.get_rng_state(device).numpy().tobytes() if device.type == "cuda" else b""
    numpy_state: Any = np.random.get_state()  # noqa: NPY002 - the global one is what is meant
    return (
        torch.get_rng_state().numpy().tobytes(), cuda, numpy_state[1].tobytes(), numpy_state[2:], random.getstate(),
    )  # fmt: skip
