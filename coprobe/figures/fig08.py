"""Fig. 8: what the term of Eq. 10 does to accuracy, and what noise at test time does to a model with and without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coprobe.figures.bars import budget_label, draw_with_change

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def draw(accuracies: pd.DataFrame, *, about: str = "") -> Figure:
    """Accuracy (a) and its change when noise is added (b): a group per attack, a bar per model and budget.

    Args:
        accuracies: columns model (as people read it), kind (colours it), epsilon (n of n/255; missing where there is
            none, then the row counts for every budget), attack, accuracy, low, high, change (accuracy with noise minus
            without), change_low, change_high (fractions), noise (the one that is added, as people read it: U(±16/255));
            the order of the rows is the order of the bars.
        about: what the models were made from, shown small.
    """
    levels = accuracies["epsilon"].map(budget_label, na_action="ignore")
    return draw_with_change(accuracies.assign(level=levels), about=about)
