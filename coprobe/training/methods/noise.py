"""Training with uniform noise instead of an attack (Eq. 11)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from coprobe.training.methods.base import METHODS, Method
from coprobe.training.update import AdversarialInputs, UpdateState, uniform


@METHODS.register("noise", summary="uniform noise of size ε, no attack", source="Eq. 11", cost=3 / 5)
@dataclass(kw_only=True)
class NoiseTraining(Method):
    """Cross-entropy at x + δ0 with δ0 ~ U(±ε), fresh in every update and not clamped to [0, 1]."""

    attacks: ClassVar[bool] = False
    clamped: ClassVar[bool] = False

    def perturb(self, update: UpdateState) -> AdversarialInputs:
        """The images with the noise."""
        noise = self.epsilon * uniform(update.batch, update.generator)
        return AdversarialInputs(update.batch.images + noise)
