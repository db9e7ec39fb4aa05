"""Training with uniform noise instead of an attack (Eq. 11)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from coprobe.data import Batch
from coprobe.training.methods.base import METHODS, Method
from coprobe.training.step import Perturbed, uniform


@METHODS.register("noise", summary="uniform noise of size ε, no attack", source="Eq. 11", cost=3 / 5)
@dataclass(kw_only=True)
class Noise(Method):
    """Cross-entropy at x + δ0 with δ0 ~ U(±ε), fresh in every update and not clamped to [0, 1]."""

    attacks: ClassVar[bool] = False
    clamped: ClassVar[bool] = False

    def perturb(self, model: nn.Module, batch: Batch, *, keep_graph: bool) -> Perturbed:
        """The images with the noise."""
        return Perturbed(batch.images + self.epsilon * uniform(batch, self.generator), None)
