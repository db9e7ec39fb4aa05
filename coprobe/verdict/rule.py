"""When a run counts as collapsed, when as never having learnt, and what kind a model is; from accuracies alone."""

from __future__ import annotations

from collections.abc import Sequence

from coprobe.checkpoint.normalisation_check import converged

#: A maximum at or below this accuracy is not worth losing: it is what guessing reaches on ten classes, and a half.
_WORTH_LOSING = 0.15


def collapse_epoch(pgd10: Sequence[float]) -> int | None:
    """The epoch (from 1) of catastrophic overfitting; None if there is none.

    It is the first from which PGD-10 accuracy at the training radius stays below half of its running maximum, for 3
    epochs or to the end.

    Args:
        pgd10: accuracy after each epoch, fractions.
    """
    for start in range(1, len(pgd10)):
        highest = max(pgd10[:start])
        if highest > _WORTH_LOSING and max(pgd10[start : start + 3]) < highest / 2:
            return start + 1
    return None


def verdict_of(clean: float, fgsm: float, pgd: float, classes: int) -> str:
    """What kind of model has these accuracies (fractions); the first rule that holds decides.

    `did not converge`: clean ≤ 1.5 / classes. `CO-affected`: PGD accuracy is less than half
    of FGSM accuracy and at least 10 points below it: the one-step attack is no longer a good attack. `stable`:
    PGD accuracy is at least a quarter of clean and two thirds of FGSM accuracy, so that one step is about as good as
    many. `not robust`: none of these, as after clean training, or on the way to a collapse.
    """
    if not converged(clean, classes):
        return "did not converge"
    if pgd < fgsm / 2 and fgsm - pgd >= 0.1:
        return "CO-affected"
    return "stable" if pgd >= max(clean / 4, fgsm * 2 / 3) else "not robust"
