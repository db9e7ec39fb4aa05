"""Sign 5: how far the loss is from linear between two random points of the ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from coprobe.verdict.signs.base import SIGNS, ImageSign, Key, Quantity, Values
from coprobe.verdict.signs.neighbourhood import Neighbourhood

#: What the random numbers are for, see `ImageRandomness`.
PURPOSE = "linearity-error"


@SIGNS.register(
    "linearity-error",
    summary="squared distance of the loss from the chord between two random points of the ball",
    source="ELLE (Abad Rocamora et al. 2024); LLR (Qin et al. 2019)",
    number=5,
    cost="3 forward for each of 4 draws",
)
@dataclass(frozen=True)
class LinearityError(ImageSign):
    """The mean and the largest of some draws; x₁ and x₂ are uniform in the ball (not clamped), a in [0, 1].

    Args:
        draws: how many for each image.
    """

    draws: int = 4
    name: ClassVar[str] = "linearity-error"
    formula: ClassVar[str] = "(ℓ((1 − a) x₁ + a x₂) − (1 − a) ℓ(x₁) − a ℓ(x₂))²"
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity("mean", "squared loss", "small", "larger by orders of magnitude", "bootstrap"),
        Quantity("largest", "squared loss", "small", "larger by orders of magnitude", "bootstrap"),
    )

    def values(self, here: Neighbourhood) -> Values:
        """Forward passes only."""
        randomness = here.randomness(PURPOSE)
        errors = []
        for draw in range(self.draws):
            first, second = (here.ball.random(here.x, randomness, draw, end) for end in range(2))
            a = randomness.uniform((), draw, 2)
            between = first + a.to(first.dtype).view(-1, 1, 1, 1) * (second - first)
            chord = (1 - a.double()) * here.loss(first) + a.double() * here.loss(second)
            errors.append((here.loss(between) - chord).square())
        stacked = torch.stack(errors, 1)
        return {Key("mean"): stacked.mean(1), Key("largest"): stacked.amax(1)}
