"""Sign 2: how far the input gradient turns within the ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from coprobe.metrics.points import alignment
from coprobe.verdict.signs.base import SIGNS, ImageSign, Key, Quantity, Values, share
from coprobe.verdict.signs.neighbourhood import Neighbourhood


@SIGNS.register(
    "gradient-alignment",
    summary="cosine between the gradients at x and at a random point of the ball",
    source="Andriushchenko and Flammarion 2020",
    number=2,
    cost="2 gradients",
)
@dataclass(frozen=True)
class GradientAlignmentSign(ImageSign):
    """What the metric of the same name measures, with its random numbers, and per image.

    Images of which either gradient is zero have no angle and are not counted.
    """

    name: ClassVar[str] = "gradient-alignment"
    formula: ClassVar[str] = "cos(g(x), g(x + η))"
    quantities: ClassVar[tuple[Quantity, ...]] = (Quantity("cosine", "cosine", "near 1", "falls towards 0"),)

    def values(self, here: Neighbourhood) -> Values:
        """At the image, and at the random point that `GradientAlignment` takes."""
        return {Key("cosine"): share(*alignment(here.clean.gradient, here.near.gradient))}
