"""Sign 15: weights that are far larger than the others of their layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch

from coprobe.checkpoint import Checkpoint
from coprobe.metrics.setup import Setup
from coprobe.verdict.signs.base import SIGNS, ModelSign, Quantity
from coprobe.verdict.signs.layers import weights_of


@SIGNS.register(
    "weight-outliers",
    summary="per layer, the largest weight over the median one, and the largest singular value",
    source="arXiv 2604.24350 (abstract); Miyato et al. 2018 (spectral norm)",
    number=15,
    cost="none",
)
@dataclass(frozen=True)
class WeightOutliers(ModelSign):
    """Of every convolution and linear layer; the matrix of a layer is outputs × everything else."""

    name: ClassVar[str] = "weight-outliers"
    formula: ClassVar[str] = "max |w| / median |w|; largest singular value of the layer's matrix"
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity("largest", "median weights", interval="none"),
        Quantity("singular", "gain", interval="none"),
    )

    def rows(self, setup: Setup, reference: Checkpoint | None) -> pd.DataFrame:
        """From the weights of the checkpoint; n is their number."""
        rows = []
        for path, weight in weights_of(setup.checkpoint).items():
            magnitude = weight.double().abs().flatten()
            singular = torch.linalg.matrix_norm(weight.double().flatten(1), 2)
            rows += [
                {"quantity": name, "at": path, "value": float(value), "n": weight.numel()}
                for name, value in (("largest", magnitude.max() / magnitude.median()), ("singular", singular))
            ]
        return pd.DataFrame(rows).assign(low=float("nan"), high=float("nan"))
