"""Gradient alignment: how far the input gradient turns within the ball; it falls with catastrophic overfitting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import nn

from coprobe.attacks.ball import Ball
from coprobe.attacks.examples import CLEAN, AdversarialBatch
from coprobe.core.randomness import ImageRandomness
from coprobe.errors import InputError, NotFiniteError
from coprobe.metrics.metric import METRICS, Metric
from coprobe.metrics.points import alignment, point_at
from coprobe.metrics.sums import ImageSums

#: What the random numbers of η are for, see `ImageRandomness`.
PURPOSE = "gradient-alignment"


@METRICS.register(
    "gradient-alignment",
    summary="cosine of the angle between the input gradients at x and at a random point of the ball around it",
    source="Andriushchenko and Flammarion 2020",
)
@dataclass(kw_only=True)
class GradientAlignment(Metric[pd.DataFrame]):
    """cos(∇ℓ(x), ∇ℓ(x + η)) per image, ℓ the cross-entropy and η uniform in the ball, not clamped.

    Images of which either gradient is zero have no angle and are counted apart.

    Raises:
        InputError: in `compute`, no images.
        NotFiniteError: in `compute`, gradients that are not finite.
    """

    name: ClassVar[str] = "gradient-alignment"

    def prepare(self, model: nn.Module) -> None:
        """Begin with sums of nothing."""
        self._model = model
        self._sums = ImageSums()
        self._images = 0

    def update(self, batch: AdversarialBatch) -> None:
        """Two passes forward and backward to the images."""
        x = batch.images[CLEAN]
        randomness = ImageRandomness(self.seed, PURPOSE, batch.indices)
        near = Ball(self.epsilon, self.norm).random(x, randomness)
        first, second = (point_at(self._model, point, batch.labels).gradient for point in (x, near))
        cosine, counted = alignment(first, second)
        self._sums.add(batch.start, torch.stack([cosine, cosine.square(), counted.double()], 1))
        self._images += len(x)

    @property
    def state(self) -> Any:
        """Sums over the images, and their number."""
        return self._sums.state, self._images

    def merge_state(self, state: Any) -> None:
        """Add up."""
        sums, images = state
        self._sums.merge_state(sums)
        self._images += images

    def compute(self) -> pd.DataFrame:
        """One row.

        n, counted (images with an angle), alignment (the mean of their cosines, NaN without any), low and high (its
        95 % interval by the normal approximation).
        """
        total = self._sums.total()
        if total is None:
            raise InputError("no images to take gradients of; raise --limit")
        if not total.isfinite().all():
            raise NotFiniteError(
                "the model's gradients are not finite (NaN or infinite); check its weights and --mean/--std"
            )
        cosines, squared, counted = total.tolist()
        mean = cosines / counted if counted else float("nan")
        half = 1.96 * (max(0.0, squared / counted - mean**2) / counted) ** 0.5 if counted else float("nan")
        row = {"n": self._images, "counted": int(counted), "alignment": mean, "low": mean - half, "high": mean + half}
        return pd.DataFrame([row])
