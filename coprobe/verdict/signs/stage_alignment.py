"""Sign 3: whether the gradient still points the same way after the step of FGSM, and PGD goes where FGSM does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from coprobe.metrics.points import alignment
from coprobe.verdict.signs.base import SIGNS, ImageSign, Key, Quantity, Values, share
from coprobe.verdict.signs.neighbourhood import Neighbourhood


@SIGNS.register(
    "stage-alignment",
    summary="cosines between the gradients before and after the step of FGSM, and between the steps of FGSM and PGD",
    source="SORA 2026 (PertAlign)",
    number=3,
    cost="3 gradients, beside the probing attack",
)
@dataclass(frozen=True)
class StageAlignment(ImageSign):
    """Two cosines per image; images with a zero vector are not counted."""

    name: ClassVar[str] = "stage-alignment"
    formula: ClassVar[str] = "cos(g(x + η), g(x + δ_F)); cos(δ_0, δ_P)"
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity("gradients", "cosine", "high", "low"),
        Quantity("steps", "cosine", "high", "low"),
    )
    sees_probing: ClassVar[bool] = True

    def values(self, here: Neighbourhood) -> Values:
        """From the gradients at both ends of the step of FGSM, and from the images of the probing attack."""
        steps = [(points - here.x).flatten(1).double() for points in (here.straight, here.probed)]
        return {
            Key("gradients"): share(*alignment(here.at_start.gradient, here.at_stepped.gradient)),
            Key("steps"): share(*alignment(*steps)),
        }
