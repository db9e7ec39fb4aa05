"""MI-FGSM: sign steps along a momentum of normalised gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from coprobe.attacks.base import ATTACKS
from coprobe.attacks.batching import State
from coprobe.attacks.gradient import GradientAttack
from coprobe.core.randomness import ImageRandomness
from coprobe.errors import InputError


@ATTACKS.register(
    "mi-fgsm",
    summary="iterated FGSM with momentum, 10 steps of epsilon/10 from the clean image",
    source="Dong et al. 2018",
    cost=10,
)
@dataclass(frozen=True, kw_only=True)
class MIFGSM(GradientAttack):
    """Momentum iterative FGSM: g ← decay · g + ∇/‖∇‖₁ (the norm of each image's gradient), then a step along sign g.

    Args:
        iterations: number of steps T, each of epsilon / T.
        decay: of the momentum; 0 is iterated FGSM.

    Raises:
        InputError: fewer than one step, or a decay below 0.
    """

    name: ClassVar[str] = "mi-fgsm"
    title: ClassVar[str] = "MI-FGSM"

    start: str = "zero"
    iterations: int = 10
    decay: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations < 1:
            raise InputError(f"{self.name}: iterations {self.iterations}: must be at least 1")
        if not 0 <= self.decay < float("inf"):
            raise InputError(f"{self.name}: decay {self.decay:g}: must be a number of at least 0")

    @property
    def schedule(self) -> tuple[int, float, int]:
        """(iterations, epsilon / iterations, 1)."""
        return self.iterations, self.epsilon / self.iterations, 1

    def initial(self, x: Tensor, randomness: ImageRandomness, restart: int) -> State:
        """The start, and a momentum of zero."""
        return {**super().initial(x, randomness, restart), "momentum": torch.zeros_like(x)}

    def update(self, state: State, gradient: Tensor, x: Tensor) -> State:
        """Add the normalised gradient to the momentum, and step along its sign."""
        norm = gradient.abs().sum((1, 2, 3), keepdim=True)
        momentum = self.decay * state["momentum"] + torch.where(norm == 0, gradient, gradient / norm)
        return {**super().update(state, momentum, x), "momentum": momentum}
