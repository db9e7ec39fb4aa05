"""Sign 1: images that one step does not break and several do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from coprobe.core.defaults import ATTACKS
from coprobe.verdict.signs.base import SIGNS, ImageSign, Key, Quantity, Values, share
from coprobe.verdict.signs.neighbourhood import Neighbourhood


@SIGNS.register(
    "fgsm-pgd-gap",
    summary="images that are right under FGSM and wrong under PGD",
    source="the paper; Wong et al. 2020",
    number=1,
    cost="2 forward, beside the attacks",
)
@dataclass(frozen=True)
class FgsmPgdGap(ImageSign):
    """The share of images that are classified correctly under FGSM and not under PGD-10."""

    name: ClassVar[str] = "fgsm-pgd-gap"
    formula: ClassVar[str] = "right(x + δ of FGSM) and not right(x + δ of PGD-10)"
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity("gap", "share of images", "small", "close to the FGSM accuracy", "wilson"),
    )
    sees_attacks: ClassVar[bool] = True

    def values(self, here: Neighbourhood) -> Values:
        """From the images of the pass."""
        fgsm, pgd = map(here.right, ATTACKS)
        return {Key("gap"): share(fgsm & ~pgd)}
