"""FGSM adversarial training from a zero start: the method that collapses most readily."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coprobe.training.methods.base import METHODS, SingleStep
from coprobe.training.update import UpdateState


@METHODS.register(
    "fgsm", summary="one step of size ε from a zero start", source="Goodfellow et al. 2015; Eq. 3", cost=1.0
)
@dataclass(kw_only=True)
class FGSMTraining(SingleStep):
    """δ0 = 0; δ = ε · sign ∇ CE(x), and CE at x + δ clamped to [0, 1]."""

    def start(self, update: UpdateState) -> Tensor:
        """Zero."""
        return torch.zeros_like(update.batch.images)
