"""FGSM with a random start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from coprobe.training.methods.base import METHODS, SingleStep, random_start
from coprobe.training.update import UpdateState


@METHODS.register("fgsm-rs", summary="one step of size 1.25 ε from a random start", source="Wong et al. 2020", cost=1.0)
@dataclass(kw_only=True)
class FGSMRS(SingleStep):
    """δ0 ~ U(±ε) with x + δ0 in [0, 1]; δ = clip_ε(δ0 + 1.25 ε · sign ∇), clamped; CE at x + δ."""

    default_step: ClassVar[float] = 1.25

    def start(self, update: UpdateState) -> Tensor:
        """Uniform in the ball, such that the image stays in [0, 1]."""
        return random_start(update, self.epsilon)
