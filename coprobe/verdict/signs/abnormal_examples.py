"""Sign 6: images whose loss the step of FGSM lowers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from coprobe.verdict.signs.base import SIGNS, ImageSign, Key, Quantity, Values, share
from coprobe.verdict.signs.neighbourhood import Neighbourhood


@SIGNS.register(
    "abnormal-examples",
    summary="images whose loss the step of FGSM lowers, by how much, and how far their logits move",
    source="AAER (Lin et al. 2023)",
    number=6,
    cost="2 gradients",
)
@dataclass(frozen=True)
class AbnormalExamples(ImageSign):
    """The share of abnormal adversarial examples; the other numbers are means over these."""

    name: ClassVar[str] = "abnormal-examples"
    formula: ClassVar[str] = "ℓ(x + δ_F) < ℓ(x + η); there ℓ(x + η) − ℓ(x + δ_F), ‖z(x + δ_F) − z(x + η)‖₂²"
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity("share", "share of images", "a few per cent", "a large share", "wilson"),
        Quantity("drop", "loss", "small", "large", "bootstrap"),
        Quantity("logits", "squared logits", "small", "large", "bootstrap"),
    )

    def values(self, here: Neighbourhood) -> Values:
        """From the points at both ends of the step of FGSM."""
        before, after = here.at_start, here.at_stepped
        abnormal = after.loss < before.loss
        moved = (after.logits.double() - before.logits.double()).square().sum(1)
        return {
            Key("share"): share(abnormal),
            Key("drop"): share(before.loss - after.loss, abnormal),
            Key("logits"): share(moved, abnormal),
        }
