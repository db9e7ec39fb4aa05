"""Sign 11: FGSM and PGD accuracy over the budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from coprobe.errors import InputError
from coprobe.verdict.signs.base import SIGNS, ImageSign, Key, Quantity, Values, share
from coprobe.verdict.signs.neighbourhood import Neighbourhood

#: Radii as of `Ball`, by its norm.
BUDGETS = {"linf": tuple(n / 255 for n in (1, 2, 4, 8, 16, 32)), "l2": (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)}
#: Steps of PGD, and how many budgets they would reach one after the other.
_STEPS, _REACH = 10, 2.5


@SIGNS.register(
    "accuracy-over-eps",
    summary="FGSM and PGD accuracy at growing budgets",
    source="SORA 2026; Athalye et al. 2018 (accuracy must fall with the budget)",
    number=11,
    cost="up to 11 gradients for each of 6 budgets",
)
@dataclass(frozen=True)
class AccuracyOverEpsilon(ImageSign):
    """PGD takes 10 steps of a quarter of the budget, until misclassified, so that it reaches every point of the ball.

    Args:
        budgets: radii as of `Ball`, in any order; none means those of `BUDGETS`.

    Raises:
        InputError: a budget that is not above 0; in `values`, one that is no radius.
    """

    budgets: tuple[float, ...] = ()
    name: ClassVar[str] = "accuracy-over-eps"
    formula: ClassVar[str] = (
        "right(x + δ) of FGSM and of PGD-10 at each ε; right under FGSM after a smaller ε was enough"
    )
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity("fgsm", "accuracy", "falls with ε, as PGD does", "stays or rises with ε", "wilson"),
        Quantity("pgd", "accuracy", "falls with ε, close to FGSM", "falls to 0", "wilson"),
        Quantity("returns", "share of images", "near 0", "large", "wilson"),
    )

    def __post_init__(self) -> None:
        if not all(budget > 0 for budget in self.budgets):
            raise InputError("a budget of 0 leaves every image as it is; give numbers above 0")

    def values(self, here: Neighbourhood) -> Values:
        """Both attacks at every budget, from the smallest on."""
        found: Values = {}
        broken = here.y < 0  # by FGSM at a smaller budget; so far none
        returns = broken.clone()
        norm = here.ball.norm
        for radius in sorted(set(self.budgets or BUDGETS[norm])):
            pgd = f"pgd:{_STEPS}:step-size={shown(radius * _REACH / _STEPS, norm)}"
            right = {"fgsm": here.right_under("fgsm", radius), "pgd": here.right_under(pgd, radius)}
            found |= {Key(name, shown(radius, norm)): share(values) for name, values in right.items()}
            returns |= broken & right["fgsm"]
            broken |= ~right["fgsm"]
        return {**found, Key("returns"): share(returns)}


def shown(radius: float, norm: str) -> str:
    """As people write it: in 255ths for L∞, as it is for L2."""
    return f"{radius * 255 if norm == 'linf' else radius:.12g}"
