"""Training on clean images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from coprobe.data import Batch
from coprobe.training.methods.base import METHODS, Method
from coprobe.training.step import Perturbed


@METHODS.register("clean", summary="no perturbation", source="the paper's Origin", cost=3 / 5)
@dataclass(kw_only=True)
class Clean(Method):
    """Cross-entropy on clean images."""

    attacks: ClassVar[bool] = False

    def perturb(self, model: nn.Module, batch: Batch, *, keep_graph: bool) -> Perturbed:
        """The images as they are."""
        return Perturbed(batch.images, None)
