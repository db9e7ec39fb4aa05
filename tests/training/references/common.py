"""A tiny model, a batch, and the literal pieces that several references share; everything in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from coprobe.core.randomness import generator_for
from coprobe.data import Batch, Dataset
from coprobe.training import make_method
from coprobe.training.methods import Method
from coprobe.training.update import TrainingContext, UpdateState

EPSILON = 16 / 255
SEED = 1
CLASSES = 5
SHAPE = (2, 4, 5)
IMAGES = 8
PADDING = 1


class Tiny(nn.Module):
    """A convolution with batch norm, a ReLU and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)
        self.relu = nn.ReLU()
        self.linear = nn.Linear(3 * 4 * 5, CLASSES)
        self.double()

    def features(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).flatten(1))


@dataclass
class Literal:
    """What a reference computed on the model that it was given.

    `loss` is what the update lowers, with its graph to the parameters; the rest are features and logits at x + δ and
    at x + δ0 (None for a method without an attack), with their graphs, for the regularizers.
    """

    images: Tensor
    loss: Tensor
    features: Tensor
    logits: Tensor
    start_features: Tensor | None = None
    start_logits: Tensor | None = None


class At(NamedTuple):
    """Which update of a run."""

    epoch: int = 0
    number: int = 0


FIRST = At()

#: Computes literally what the method does in this update: the same passes through the (training) model in the same
#: order, so that the running statistics come out equal as well. It must not change the method.
Reference = Callable[[Tiny, Batch, Method, At], Literal]


def tiny() -> Tiny:
    torch.manual_seed(3)
    return Tiny().train()


def make_batch(seed: int = 4) -> Batch:
    """Six of the eight images, cropped and flipped from images with a border of one pixel."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(6, *SHAPE, generator=generator, dtype=torch.float64)
    images[0, :, :2] = 0.0  # some pixels at the borders of the range, where the clamp bites
    images[1, :, 2:] = 1.0
    indices = torch.randperm(IMAGES, generator=generator)[:6]
    offsets = torch.randint(0, 2 * PADDING + 1, (6, 2), generator=generator)
    mirrored = torch.tensor([True, False, True, True, False, False])
    return Batch(images, torch.tensor([0, 1, 2, 3, 4, 0]), indices, indices, 0, offsets, mirrored)


def context(epochs: int = 10) -> TrainingContext:
    """Memories in float64, so that nothing is rounded."""
    images = torch.zeros(IMAGES, *SHAPE, dtype=torch.uint8)
    dataset = Dataset(images, torch.arange(IMAGES) % CLASSES, tuple("abcde"), "made", "train")
    return TrainingContext(dataset, torch.device("cpu"), 6, PADDING, epochs, ((0, epochs),), memory_dtype=torch.float64)


def make(name: str, *, epoch: int = 0, options: dict[str, float] | None = None, **common: float) -> Method:
    """The method at the beginning of the epoch (updates before it left out)."""
    method = make_method(name, options or {}, epsilon=EPSILON, **common)
    method.prepare(context())
    for each in range(epoch + 1):
        begin(method, each)
    return method


def begin(method: Method, epoch: int) -> None:
    """Begin an epoch as the loop does."""
    method.begin_epoch(epoch, generator_for(SEED, "memory", epoch))


def draws(at: At) -> torch.Generator:
    """A generator that will draw what the method will draw in this update."""
    return generator_for(SEED, "perturbation", *at)


def state(method: Method, model: nn.Module, batch: Batch, at: At = FIRST, *, keep_graph: bool = False) -> UpdateState:
    """What the loop gives to the method for this update."""
    return UpdateState(model, batch, *at, draws(at), method.loss, keep_graph)


def draw_uniform(generator: torch.Generator, batch: Batch) -> Tensor:
    """Numbers from [−1, 1), float32 as on the device, like the images."""
    return 2 * torch.rand(batch.images.shape, generator=generator) - 1


def clip(value: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    low, high = torch.as_tensor(low, dtype=value.dtype), torch.as_tensor(high, dtype=value.dtype)
    return torch.minimum(torch.maximum(value, low), high)


def soft_cross_entropy(logits: Tensor, labels: Tensor, factor: float = 1.0) -> Tensor:
    """Mean over the batch of − Σ_k target_k · log p_k, one term at a time; `factor` = 1 is plain cross-entropy."""
    total = torch.zeros((), dtype=logits.dtype)
    for row, label in zip(logits, labels, strict=True):
        log_p = row - torch.logsumexp(row, 0)
        for k in range(CLASSES):
            total = total - (factor if k == label else (1 - factor) / (CLASSES - 1)) * log_p[k]
    return total / len(labels)


def attack_gradient(model: Tiny, x: Tensor, labels: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the soft cross-entropy at x, and the features and logits there with their graph."""
    x = x.clone().requires_grad_()
    features = model.features(x)
    logits = model.linear(features.flatten(1))
    (gradient,) = torch.autograd.grad(soft_cross_entropy(logits, labels, factor), x, retain_graph=True)
    return gradient, features, logits


def single_step(model: Tiny, batch: Batch, delta0: Tensor, step: float, factor: float = 1.0) -> Literal:
    """δ = clip_ε(δ0 + step · sign g) with x + δ in [0, 1], then soft cross-entropy there."""
    gradient, start_features, start_logits = attack_gradient(model, batch.images + delta0, batch.labels, factor)
    moved = clip(delta0 + step * gradient.sign(), -EPSILON, EPSILON)
    return update(model, clip(batch.images + moved, 0, 1), batch, factor, start_features, start_logits)


def update(
    model: Tiny,
    images: Tensor,
    batch: Batch,
    factor: float = 1.0,
    start_features: Tensor | None = None,
    start_logits: Tensor | None = None,
) -> Literal:
    """The update's pass and its soft cross-entropy."""
    features = model.features(images)
    logits = model.linear(features.flatten(1))
    loss = soft_cross_entropy(logits, batch.labels, factor)
    return Literal(images, loss, features, logits, start_features, start_logits)
