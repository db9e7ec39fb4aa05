"""Training on clean images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from coprobe.training.methods.base import METHODS, Method
from coprobe.training.update import AdversarialInputs, UpdateState


@METHODS.register("clean", summary="no perturbation", source="the paper's Origin", cost=3 / 5)
@dataclass(kw_only=True)
class Clean(Method):
    """Cross-entropy on clean images."""

    attacks: ClassVar[bool] = False

    def perturb(self, update: UpdateState) -> AdversarialInputs:
        """The images as they are."""
        return AdversarialInputs(update.batch.images)
