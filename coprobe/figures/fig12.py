"""Fig. 12: examples crafted on stable models hardly hurt a CO-affected one; examples crafted on itself do."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle
from string import ascii_lowercase
from typing import TYPE_CHECKING

from coprobe.figures.bars import (
    ANY_MODEL,
    budget_label,
    by_model,
    draw_bars,
    figure_width,
    handles,
    joined,
    legend,
    noise_labels,
)
from coprobe.figures.style import COLOURS, new_figure, paper_style, percent_limits, shades, stamp

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

#: The source of the white box's examples.
ITSELF = "the model itself"


def draw(accuracies: pd.DataFrame, *, about: str = "") -> Figure:
    """Accuracy of one model on transferred examples: a panel per budget, a group per attack, a bar per source.

    Bars with noise are hatched; lines across the panels show the accuracy on clean images.

    Args:
        accuracies: columns source (as people read it), source_xi (its training budget, which shades it), epsilon (n
            of n/255), noise (none or U(16), which is ±16/255), attack, accuracy, low, high, white_box (under the same
            attack crafted on the model itself; may be missing), clean (on clean images with this noise); fractions.
        about: what the models were made from, shown small.
    """
    attacks, budgets = (list(dict.fromkeys(accuracies[key])) for key in ("attack", "epsilon"))
    rows = _with_white_box(accuracies)
    colours = _colours(rows)
    series = by_model(rows, colours)
    with paper_style():
        figure = new_figure(figure_width(attacks, len(series)), 0.4 + 1.3 * len(budgets))
        axes = figure.subplots(len(budgets), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axis, budget, letter in zip(axes, budgets, ascii_lowercase, strict=False):
            shown = [replace(bars, rows=bars.rows[bars.rows["epsilon"] == budget]) for bars in series]
            draw_bars(axis, attacks, shown)
            lines = _clean_lines(axis, rows)
            axis.set_title(f"({letter}) {budget_label(budget)}", loc="left")
            axis.set_ylabel("accuracy (%)")
        axes[0].set_ylim(percent_limits(100 * rows[["high", "clean"]].max(axis=None)))
        legend(figure, [*handles(rows, colours), *lines])
        stamp(figure, about)
    return figure


def _with_white_box(accuracies: pd.DataFrame) -> pd.DataFrame:
    """Rows as `by_model` takes them, with the model itself as one more source; its accuracies have no intervals."""
    import pandas as pd

    known = accuracies.dropna(subset=["white_box"]).drop_duplicates(["epsilon", "noise", "attack"])
    itself = known.assign(source=ITSELF, **dict.fromkeys(("accuracy", "low", "high"), known["white_box"]))
    rows = pd.concat([accuracies, itself] if len(itself) else [accuracies], ignore_index=True)
    return rows.assign(model="crafted on " + rows["source"], level=rows["noise"].pipe(noise_labels))


def _colours(rows: pd.DataFrame) -> dict[str, str]:
    """Sources from light to dark as their training budgets grow; the model itself, if known, in the colour of CO."""
    ordered = rows[rows["source"] != ITSELF].sort_values("source_xi")
    models = list(dict.fromkeys(ordered["model"]))
    itself = {model: COLOURS["CO-affected"] for model in rows["model"] if model not in models}
    return dict(zip(models, shades(COLOURS["stable"], len(models)), strict=True)) | itself


def _clean_lines(axis: Axes, rows: pd.DataFrame) -> list[Line2D]:
    """A line per noise at the accuracy on clean images."""
    clean = rows.drop_duplicates("level").set_index("level")["clean"]
    return [
        axis.axhline(
            100 * accuracy,
            color=ANY_MODEL,
            linewidth=0.8,
            linestyle=style,
            zorder=0,
            label=joined("clean images", level),
        )
        for (level, accuracy), style in zip(clean.items(), cycle(("--", ":", "-.")), strict=False)
    ]
