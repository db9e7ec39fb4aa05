"""GradAlign: FGSM with a penalty on input gradients that turn within the ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from coprobe.training.methods.base import METHODS, check_range
from coprobe.training.methods.fgsm import FGSMTraining
from coprobe.training.update import AdversarialInputs, Pass, UpdateState, uniform

#: A gradient of this norm or less counts as zero: float32 can't hold the squares of its entries.
_ZERO = 1e-18


@METHODS.register(
    "gradalign",
    summary="FGSM of step 1.25 ε, and a penalty on the angle between the gradients at x and in the ball",
    source="Andriushchenko & Flammarion 2020",
    # The penalty: a forward pass, a backward pass, and a backward pass through both.
    cost=(5 + 6) / 5,
)
@dataclass(kw_only=True)
class GradAlign(FGSMTraining):
    """GradAlign as in its public code, but for one pass.

    δ = clip_ε(1.25 ε · sign g(x)) with g the input gradient of CE, x + δ clamped to [0, 1]; CE at x + δ, plus
    λ · (1 − mean cos(g(x), g(x + η))) with η ~ U(±ε), not clamped. The mean is over the images of which neither
    gradient is zero, and only g(x + η) is differentiated. Both gradients are taken in training mode; g(x) is the
    attack's, for which the public code makes a fresh pass (which moves the batch-norm running statistics once more).
    Of several processes each takes the mean over its own part of the batch, weighted in the update like its CE.

    The mean cosine is the column `alignment`. The penalty needs a second derivative, which torch.compile can't give.

    Args:
        weight: λ; None takes the public 0.02 · 10^(n/8) at ε = n/255, that is 0.2 at 8, 0.632 at 12, 2 at 16.

    Raises:
        InputError: weight below 0.
    """

    weight: float | None = None
    default_step: ClassVar[float] = 1.25
    compiles: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.weight is not None:
            check_range("weight", self.weight, 0)

    @property
    def penalty_weight(self) -> float:
        """λ in force."""
        return 0.02 * 10 ** (self.epsilon * 255 / 8) if self.weight is None else self.weight

    def objective(self, update: UpdateState, inputs: AdversarialInputs, final: Pass) -> Tensor:
        """CE at x + δ plus the weighted penalty (scalar); makes the pass at x + η."""
        assert inputs.gradient is not None
        batch = update.batch
        near = update.forward(batch.images + self.epsilon * uniform(batch, update.generator))
        gradient = update.input_gradient(near, self.loss(near.logits, batch.labels), create_graph=True)
        penalty = misalignment(inputs.gradient, gradient)
        update.measured["alignment"] = 1 - penalty.detach()
        return super().objective(update, inputs, final) + self.penalty_weight * penalty


def misalignment(first: Tensor, second: Tensor) -> Tensor:
    """1 − cosine of the angle between two gradients of each image, averaged over the images where neither is zero.

    Args:
        first: batch × …
        second: like `first`.

    Returns:
        A scalar from 0 to 2; 0 if no image is left. Zero gradients don't spoil its derivative.
    """
    first, second = first.flatten(1), second.flatten(1)
    first_norm, second_norm = first.norm(dim=1), second.norm(dim=1)
    counted = (first_norm > _ZERO) & (second_norm > _ZERO)
    first = first / torch.where(counted, first_norm, 1)[:, None]
    second = second / torch.where(counted, second_norm, 1)[:, None]
    return torch.where(counted, 1 - (first * second).sum(1), 0).sum() / counted.sum().clamp(min=1)
