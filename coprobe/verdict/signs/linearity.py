"""Sign 4: how much of the slope that FGSM counts on is left after its step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from coprobe.attacks.ball import steepest
from coprobe.verdict.signs.base import SIGNS, ImageSign, Key, Quantity, Values, share
from coprobe.verdict.signs.neighbourhood import Neighbourhood


@SIGNS.register(
    "linearity",
    summary="slope along the step of FGSM after the step, over the slope before it",
    source="SORA 2026 (linearity coefficient)",
    number=4,
    cost="2 gradients",
)
@dataclass(frozen=True)
class Linearity(ImageSign):
    """The directional derivative along sign g after the step over that before it.

    Where the loss is linear it is 1. A cross-entropy that is saturated flattens as the image goes over the border or
    comes from far behind it, so that healthy models show other numbers than 1 as well; a negative one says that the
    loss falls in the direction in which FGSM went. Images whose gradient is zero are not counted.
    """

    name: ClassVar[str] = "linearity"
    formula: ClassVar[str] = "⟨sign g(x + η), g(x + δ_F)⟩ / ‖g(x + η)‖₁"
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity("coefficient", "ratio", "near 1", "small or negative", "bootstrap"),
    )

    def values(self, here: Neighbourhood) -> Values:
        """From the gradients at both ends of the step of FGSM."""
        before, after = here.at_start.gradient, here.at_stepped.gradient
        step = steepest(before.view_as(here.x), here.ball.norm).flatten(1)
        slope = (step * before).sum(1)
        return {Key("coefficient"): share((step * after).sum(1) / slope, slope > 0)}
