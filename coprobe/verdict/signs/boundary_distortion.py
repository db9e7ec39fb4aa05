"""Sign 7: decision borders that cross the segment between two points which are both classified correctly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from coprobe.verdict.signs.base import SIGNS, ImageSign, Key, Quantity, Values, share
from coprobe.verdict.signs.neighbourhood import Neighbourhood


@SIGNS.register(
    "boundary-distortion",
    summary="images right at x and after FGSM, but wrong somewhere on the segment between",
    source="Kim et al. 2021",
    number=7,
    cost="2 gradients, and up to 100 forward",
)
@dataclass(frozen=True)
class BoundaryDistortion(ImageSign):
    """Of the images that are right at both ends: whether some prediction on the segment between them is wrong.

    Coarse points come first, and an image for which a wrong one is found needs no more.

    Args:
        points: on the segment, at equal distances, without its ends.
    """

    points: int = 100
    name: ClassVar[str] = "boundary-distortion"
    formula: ClassVar[str] = "right(x) and right(x + δ_F), but for some of 100 a in (0, 1) not right(x + a δ_F)"
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity("share", "share of images right at both ends", "near 0", "large", "wilson"),
    )

    def values(self, here: Neighbourhood) -> Values:
        """From the ends of the segment and the points between them."""
        counted = (here.clean.logits.argmax(1) == here.y) & (here.at_stepped.logits.argmax(1) == here.y)
        distorted = counted & False
        rows = counted.nonzero()[:, 0]
        for place in coarse_first(self.points):
            if not len(rows):
                break
            a = place / (self.points + 1)
            wrong = here.predictions(here.x[rows] + a * (here.stepped[rows] - here.x[rows])) != here.y[rows]
            distorted[rows[wrong]] = True
            rows = rows[~wrong]
        return {Key("share"): share(distorted, counted)}


def coarse_first(count: int) -> list[int]:
    """1 … count, so ordered that every beginning is spread over the range: by the bits read backwards."""
    bits = count.bit_length()
    return sorted(range(1, count + 1), key=lambda place: int(f"{place:0{bits}b}"[::-1], 2))
