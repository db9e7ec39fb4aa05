"""Sign 12: the loss on a plane through the image, along FGSM and along random signs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from coprobe.attacks.ball import steepest
from coprobe.verdict.signs.base import SIGNS, ImageSign, Key, Quantity, Values, share
from coprobe.verdict.signs.neighbourhood import Neighbourhood

#: What the random numbers are for, see `ImageRandomness`.
PURPOSE = "loss-surface"


@SIGNS.register(
    "loss-surface",
    summary="the loss on the plane through x along δ of FGSM and along random signs",
    source="Kim et al. 2021; LAP 2024; SORA 2026",
    number=12,
    cost="1 gradient, and 121 forward",
)
@dataclass(frozen=True)
class LossSurface(ImageSign):
    """The loss on a grid, whether it is highest inside the segment from x to x + δ_0, and how far it is from a plane.

    The points of the plane are not clamped to [0, 1].

    Args:
        cells: from −1 to 0 and from 0 to 1, on both axes.
    """

    cells: int = 5
    name: ClassVar[str] = "loss-surface"
    formula: ClassVar[str] = (
        "ℓ(x + a δ_0 + b r), a, b in [−1, 1], r = ε · random signs; argmax over a in [0, 1], b = 0, inside (0, 1); "
        "the part of its variance that the best plane leaves"
    )
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity("inside", "share of images", "near 0", "large", "wilson"),
        Quantity("bend", "share of the variance", "near a plane", "ridges"),
        Quantity("loss", "loss", "rises along a", "highest between 0 and 1", "bootstrap"),
    )

    @property
    def grid(self) -> list[float]:
        """The values of a and of b."""
        return [place / self.cells for place in range(-self.cells, self.cells + 1)]

    def values(self, here: Neighbourhood) -> Values:
        """One pass for each point of the grid."""
        drawn = here.randomness(PURPOSE).uniform(here.x.shape[1:]) - 0.5
        across = here.ball.epsilon * steepest(drawn.to(here.x.dtype), here.ball.norm)
        along = here.straight - here.x
        surface = {(a, b): here.loss(here.x + a * along + b * across) for a in self.grid for b in self.grid}
        ahead = torch.stack([loss for (a, b), loss in surface.items() if a >= 0 and b == 0])
        highest = ahead.argmax(0)
        return {
            Key("inside"): share((highest > 0) & (highest < len(ahead) - 1)),
            Key("bend"): self._bend(torch.stack(list(surface.values()), 1)),
            **{Key("loss", f"{a:g},{b:g}"): loss for (a, b), loss in surface.items()},
        }

    def _bend(self, losses: Tensor) -> Tensor:
        """1 − R² of the best plane, from losses (images, points); NaN where all are the same."""
        a, b = (axis.flatten() for axis in torch.meshgrid(*[losses.new_tensor(self.grid)] * 2, indexing="ij"))
        centred = losses - losses.mean(1, keepdim=True)
        total = centred.square().sum(1)
        # a and b are orthogonal to each other and to constants, so each explains its own part
        explained = sum((axis * centred).sum(1).square() / axis.square().sum() for axis in (a, b))
        return share((1 - explained / total).clamp(0, 1), total > 0)
