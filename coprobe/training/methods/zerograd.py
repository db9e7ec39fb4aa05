"""ZeroGrad and MultiGrad: single steps that leave out the entries whose gradient is small or unsure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from coprobe.attacks import project
from coprobe.data import Batch
from coprobe.training.methods.base import METHODS, Method, SingleStep, check_range, random_start
from coprobe.training.update import AdversarialInputs, UpdateState


@METHODS.register(
    "zerograd",
    summary="one step of size 2 ε from a random start, not where the gradient is small",
    source="Golgooni et al. 2021",
    cost=1.0,
)
@dataclass(kw_only=True)
class ZeroGrad(SingleStep):
    """ZeroGrad as in its public code.

    δ0 ~ U(±ε) with x + δ0 in [0, 1]. Of the gradient g there, the entries with |g| below the q-quantile of |g| over
    all entries of their image become 0; δ = clip_ε(δ0 + 2 ε · sign g), clamped; CE at x + δ.

    Args:
        q: fraction of each image's entries that stay where they started. 0.35 is the value for CIFAR-10, 0.45 that
            for CIFAR-100, 0.7 that for SVHN, all at ε = 8/255; none was published for a larger ε.

    Raises:
        InputError: q outside [0, 1].
    """

    q: float = 0.35
    default_step: ClassVar[float] = 2.0

    def __post_init__(self) -> None:
        check_range("q", self.q, 0, 1)

    def start(self, update: UpdateState) -> Tensor:
        """Uniform in the ball, such that the image stays in [0, 1]."""
        return random_start(update, self.epsilon)

    def step(self, delta: Tensor, gradient: Tensor, batch: Batch) -> Tensor:
        """The sign step, without the entries whose gradient is small."""
        size = gradient.abs()
        threshold = size.flatten(1).quantile(self.q, dim=1).view(-1, 1, 1, 1)
        return super().step(delta, torch.where(size < threshold, 0, gradient), batch)


@METHODS.register(
    "multigrad",
    summary="one step of size 2 ε from zero, only where the gradient's signs at 3 random starts agree",
    source="Golgooni et al. 2021",
    cost=(3 * 2 + 3) / 5,
)
@dataclass(kw_only=True)
class MultiGrad(Method):
    """MultiGrad, the sibling of ZeroGrad.

    The gradient is taken in training mode at several δ0 ~ U(±ε) with x + δ0 in [0, 1], drawn one after the other. g
    is 0 where its sign is not the same in all of them; δ = clip_ε(2 ε · sign g) from δ = 0, clamped; CE at x + δ.
    Regularizers compare with the pass at the last δ0.

    Args:
        samples: how many δ0.

    Raises:
        InputError: samples below 1.
    """

    samples: int = 3
    default_step: ClassVar[float] = 2.0

    def __post_init__(self) -> None:
        check_range("samples", self.samples, 1)

    def perturb(self, update: UpdateState) -> AdversarialInputs:
        """One pass per δ0, then the step from zero; `start` is the pass at the last δ0."""
        x = update.batch.images
        votes = torch.zeros_like(x)
        for left in reversed(range(self.samples)):
            start = update.forward(x + random_start(update, self.epsilon))
            votes += update.input_gradient(
                start, self.loss(start.logits, update.batch.labels), compared=left == 0
            ).sign()
        agreed = torch.where(votes.abs() == self.samples, votes.sign(), 0)
        return AdversarialInputs(project(x + self.alpha * agreed, x, self.epsilon), start)
