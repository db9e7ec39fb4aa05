"""Sign 14: accuracy by how sure the model is of the true class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from coprobe.attacks.examples import CLEAN
from coprobe.core.defaults import ATTACKS
from coprobe.verdict.signs.base import SIGNS, ImageSign, Key, Quantity, Values, share
from coprobe.verdict.signs.neighbourhood import Neighbourhood

#: The quantities in the order of the attacks.
_ACCURACIES = dict(zip((CLEAN, *ATTACKS), ("clean", "fgsm", "pgd"), strict=True))


@SIGNS.register(
    "confidence",
    summary="accuracy in groups of images by the probability of their true class",
    source="DDG 2026; ETA 2024; DOM 2023 (abstracts)",
    number=14,
    cost="1 gradient and 2 forward, beside the attacks",
)
@dataclass(frozen=True)
class Confidence(ImageSign):
    """Clean, FGSM and PGD-10 accuracy in quantile groups of p_y(x), from the least sure to the surest.

    Args:
        groups: of equally many images.
    """

    groups: int = 5
    name: ClassVar[str] = "confidence"
    formula: ClassVar[str] = "right(x), right(x + δ) of FGSM and of PGD-10, in fifths of the images by p_y(x)"
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity("probability", "probability of the true class", interval="normal"),
        Quantity("clean", "accuracy", interval="wilson"),
        Quantity("fgsm", "accuracy", "falls with doubt, as PGD does", "high in all groups", "wilson"),
        Quantity("pgd", "accuracy", "falls with doubt", "0 in all groups", "wilson"),
    )
    sees_attacks: ClassVar[bool] = True

    def values(self, here: Neighbourhood) -> Values:
        """The probability and the three answers, of all images together."""
        right = {Key(name): share(here.right(spec)) for spec, name in _ACCURACIES.items()}
        return {Key("probability"): torch.exp(-here.clean.loss), **right}

    def of_all(self, values: Values) -> Values:
        """Divided among the groups."""
        order = values[Key("probability")].argsort(stable=True)
        groups = torch.empty_like(order)
        groups[order] = torch.arange(len(order), device=order.device) * self.groups // len(order)
        return {
            Key(quantity, str(group + 1)): share(numbers, groups == group)
            for (quantity, _), numbers in values.items()
            for group in range(self.groups)
        }
