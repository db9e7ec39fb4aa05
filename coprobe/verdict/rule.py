"""When a run counts as collapsed, when as never having learnt, and what kind a model is; from accuracies alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from coprobe.checkpoint.normalisation_check import converged

#: A maximum at or below this accuracy is not worth losing: it is what guessing reaches on ten classes, and a half.
_WORTH_LOSING = 0.15


def collapse_epoch(history: Iterable[Mapping[Any, Any]]) -> int | None:
    """The epoch (from 1) of catastrophic overfitting; None if there is none.

    It is the first from which, for 3 epochs or to the end, each epoch is lost or blinded. Lost: PGD-10 accuracy at the
    training radius is below half of its maximum before, if that was above 15 %. Blinded: FGSM no longer finds what
    PGD-10 finds (see `is_blinded`), whether or not there was robustness before.

    Args:
        history: a row per epoch with the accuracies `clean`, `fgsm` and `pgd10`, fractions.
    """
    rows = [(row["clean"], row["fgsm"], row["pgd10"]) for row in history]
    for start in range(len(rows)):
        highest = max((pgd for _, _, pgd in rows[:start]), default=0.0)
        lost = highest / 2 if highest > _WORTH_LOSING else 0.0
        following = rows[start : start + 3]
        if all(pgd < lost or (is_blinded(fgsm, pgd) and fgsm >= clean / 2) for clean, fgsm, pgd in following):
            return start + 1
    return None


def is_blinded(fgsm: float, pgd: float) -> bool:
    """Whether one step is no longer a good attack: PGD accuracy less than half of FGSM accuracy, and 10 points below.

    A network that was never trained against attacks can show this, too, at a radius where PGD breaks it and FGSM does
    not; then FGSM accuracy is far below clean accuracy.
    """
    return pgd < fgsm / 2 and fgsm - pgd >= 0.1


def verdict_of(clean: float, fgsm: float, pgd: float, classes: int) -> str:
    """What kind of model has these accuracies (fractions); the first rule that holds decides.

    `did not converge`: clean ≤ 1.5 / classes. `CO-affected`: FGSM is blinded (see `is_blinded`). `stable`:
    PGD accuracy is at least a quarter of clean and two thirds of FGSM accuracy, so that one step is about as good as
    many. `not robust`: none of these, as after clean training, or on the way to a collapse.
    """
    if not converged(clean, classes):
        return "did not converge"
    if is_blinded(fgsm, pgd):
        return "CO-affected"
    return "stable" if pgd >= max(clean / 4, fgsm * 2 / 3) else "not robust"
