"""Fig. 11: models trained on noise-augmented images (Eqs. 11, 12) under attack, and what noise at test time changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coprobe.figures.bars import draw_with_change

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def draw(accuracies: pd.DataFrame, *, about: str = "") -> Figure:
    """Accuracy (a) and its change when noise is added (b): a group per attack, a bar per model.

    Args:
        accuracies: columns model (as people read it), kind (colours it), attack, accuracy, low, high, change (accuracy
            with noise minus without), change_low, change_high (fractions), noise (the one that is added, as people read
            it: U(±16/255)); the order of the rows is that of the bars.
        about: what the models were made from, shown small.
    """
    return draw_with_change(accuracies.assign(level=""), about=about)
