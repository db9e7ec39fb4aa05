"""When a run counts as collapsed, and when as never having learnt; from accuracies alone."""

from __future__ import annotations

from collections.abc import Sequence

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


def converged(clean: float, classes: int) -> bool:
    """Whether a final clean accuracy (a fraction) is above 1.5 times that of guessing."""
    return clean > 1.5 / classes
