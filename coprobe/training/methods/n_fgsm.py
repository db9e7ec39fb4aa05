"""N-FGSM: FGSM from a noisy image, without projection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from coprobe.data import Batch
from coprobe.training.methods.base import METHODS, SingleStep, check_range, random_start
from coprobe.training.update import UpdateState


@METHODS.register(
    "n-fgsm",
    summary="one step of size ε from noise of size 2 ε, not projected to the ball",
    source="de Jorge et al. 2022",
    cost=1.0,
)
@dataclass(kw_only=True)
class NFGSM(SingleStep):
    """N-FGSM as in its public code.

    η ~ U(±k ε) with x + η in [0, 1]; δ = η + ε · sign ∇ CE(x + η), such that x + δ stays in [0, 1] but not in the
    ball: |δ| can reach (k + 1) ε. CE at x + δ.

    Args:
        k: radius of the noise as a multiple of ε. Published exceptions to 2: 3 for SVHN at ε = 12/255, 4 for
            CIFAR-10 with WideResNet-28-10 at 16/255.

    Raises:
        InputError: k below 0 or not finite.
    """

    k: float = 2.0
    bounded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_range("k", self.k, 0)

    def start(self, update: UpdateState) -> Tensor:
        """Uniform noise, such that the image stays in [0, 1]."""
        return random_start(update, self.k * self.epsilon)

    def step(self, delta: Tensor, gradient: Tensor, batch: Batch) -> Tensor:
        """X + δ from η and the gradient there: one sign step, clamped to [0, 1]."""
        return (batch.images + delta + self.alpha * gradient.sign()).clamp_(0, 1)
