"""Fig. 9: what noise at test time does to the accuracy of CO-affected and stable models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coprobe.figures.bars import by_model, draw_bars, figure_width, handles, legend, model_colours, noise_labels
from coprobe.figures.style import new_figure, paper_style, percent_limits, stamp

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def draw(accuracies: pd.DataFrame, *, about: str = "") -> Figure:
    """Accuracy: a group per attack, a bar per model and noise; bars with noise are hatched.

    Args:
        accuracies: columns model (as people read it), kind (colours it), noise (none or U(16), which is ±16/255),
            attack, accuracy, low, high (fractions); the order of the rows is the order of the bars.
        about: what the models were made from, shown small.
    """
    attacks = list(dict.fromkeys(accuracies["attack"]))
    rows = accuracies.assign(level=accuracies["noise"].pipe(noise_labels))
    colours = model_colours(rows)
    series = by_model(rows, colours)
    with paper_style():
        figure = new_figure(figure_width(attacks, len(series)), 2.2)
        axis = figure.subplots()
        draw_bars(axis, attacks, series)
        axis.set(ylabel="accuracy (%)", ylim=percent_limits(100 * accuracies["high"].max()))
        legend(figure, handles(rows, colours))
        stamp(figure, about)
    return figure
