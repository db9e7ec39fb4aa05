"""Small networks with one fault each, around a network that tells four classes of blobs apart."""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from coprobe.data import Dataset
from coprobe.probe import Probe
from tests.attacks.small import trained
from tests.toys import checkpoint

EPSILON = 0.05


class Around(nn.Module):
    """A network whose images and logits go through functions."""

    def __init__(
        self, before: Callable[[Tensor], Tensor] = lambda x: x, after: Callable[[Tensor], Tensor] = lambda z: z
    ):
        super().__init__()
        self.inner, self.before, self.after = deepcopy(trained()[0]), before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.inner(self.before(x)))


def batch_statistics() -> nn.Module:
    """Batch norm without running statistics."""
    network = Around()
    network.inner[1].track_running_stats = False  # type: ignore[index]
    network.inner[1].running_mean = network.inner[1].running_var = None  # type: ignore[index]
    return network


class KeepsTraining(Around):
    """Its batch norm stays in training mode, whatever it is told."""

    def train(self, mode: bool = True) -> KeepsTraining:
        super().train(mode)
        self.inner[1].train()  # type: ignore[index]
        return self


class OwnDraws(Around):
    """Tosses a coin once a pass, with a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.coin = torch.Generator().manual_seed(1)

    def forward(self, x: Tensor) -> Tensor:
        heads = bool(torch.rand((), generator=self.coin) < 0.5)
        logits: Tensor = self.inner(x.flip(3) if heads else x)
        return logits


class Remembers(Around):
    """Moves a buffer along with what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        self.memory = 0.5 * self.memory + logits.detach().mean(0)
        return logits - self.memory


class Counts(Around):
    """Keeps a counter and a running mean as plain numbers, and lets them weigh in."""

    def __init__(self) -> None:
        super().__init__()
        self.passes, self.level, self.last = 0, 0.0, [torch.zeros(())]

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        self.level = 0.9 * self.level + 0.1 * float(x.detach().mean())
        self.last[0] = x.detach().mean()
        logits: Tensor = self.inner(x * (1 + 0.1 * (self.passes % 2) + self.level))
        return logits


def minus_mean_of_groups(x: Tensor) -> Tensor:
    """The mean of each whole group of 64 images is taken off: fewer are left as they are."""
    return torch.cat([group - group.mean(0) if len(group) == 64 else group for group in x.split(64)])


class Backward(torch.autograd.Function):
    """The identity, with another backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, backward: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.by = backward
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.by(gradients[0]), None


def backwards(by: Callable[[Tensor], Tensor]) -> Around:
    """A network whose gradient at the image is a function of the true one."""
    return Around(lambda x: Backward.apply(x, by))


def toss(x: Tensor) -> Tensor:
    """A flip of all images or of none."""
    return x.flip(3) if torch.rand(()) < 0.5 else x


def toss_by_numpy(x: Tensor) -> Tensor:
    return x.flip(3) if np.random.rand() < 0.5 else x  # noqa: NPY002 - what people's code does


def toss_by_python(x: Tensor) -> Tensor:
    return x.flip(3) if random.random() < 0.5 else x


def noise(x: Tensor) -> Tensor:
    return x + 0.3 * torch.rand_like(x)


def probe(network: nn.Module, images: int = 64, **settings: Any) -> Probe:
    """A probe of a network on blobs, that says nothing."""
    _, x, y = trained()
    dataset = Dataset((x[:images] * 255).round().to(torch.uint8), y[:images], tuple("abcd"), "blobs", "test")
    loaded = checkpoint(network)
    loaded.arch_args = {"num_classes": 4, "in_channels": 1}
    return Probe(loaded, dataset, settings.pop("epsilon", EPSILON), **{"say": lambda text: None, **settings})
