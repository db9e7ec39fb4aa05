"""Fig. 1: accuracy collapses in the epoch in which the activation differences jump."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coprobe.figures.style import (
    ATTACK_COLOURS,
    COLUMN,
    NODE_COLOURS,
    PAGE,
    new_figure,
    paper_style,
    percent_limits,
    plain,
    stamp,
    wrapped,
)
from coprobe.verdict.rule import collapse_epoch

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABELS = {"clean": "clean", "fgsm": "FGSM", "pgd10": "PGD-10"}


def draw(histories: pd.DataFrame, *, about: str = "") -> Figure:
    """Held-out accuracy (top) and V_act (bottom, Eq. 5) over the epochs, one column per run.

    Args:
        histories: rows of history.csv with a column `run`; accuracies are fractions, `v_act_*` per node.
        about: what the runs were made from, shown small.
    """
    runs = list(dict.fromkeys(histories["run"]))
    nodes = [column for column in histories.columns if column.startswith("v_act_") and column.count("_") == 2]
    with paper_style():
        width = min(PAGE, COLUMN * len(runs))
        figure = new_figure(width, 3.6)
        axes = figure.subplots(2, len(runs), sharex=True, sharey="row", squeeze=False)
        for column, run in enumerate(runs):
            history = histories[histories["run"] == run]
            top, bottom = axes[0][column], axes[1][column]
            top.set_title(wrapped(run, 0.8 * width / len(runs)), pad=10)
            marker = "o" if len(history) == 1 else None
            for key, label in _LABELS.items():
                top.plot(
                    history["epoch"],
                    100 * history[key],
                    color=ATTACK_COLOURS[key],
                    label=label,
                    marker=marker,
                    clip_on=False,
                )
            for node, colour in zip(nodes, NODE_COLOURS, strict=False):
                name = plain(node.removeprefix("v_act_"))
                bottom.plot(history["epoch"], history[node], color=colour, label=name, marker=marker)
            _mark_collapse(history, top, bottom)
            bottom.set_xlabel("epoch")
            bottom.xaxis.get_major_locator().set_params(integer=True)
        highest = 100 * histories[list(_LABELS)].to_numpy().max()
        axes[0][0].set(ylabel="held-out accuracy (%)", ylim=percent_limits(highest))
        axes[1][0].set(ylabel=r"$V_\mathrm{act}$", ylim=(0, None))
        for row, title in enumerate(("images", "node")):
            axes[row][-1].legend(
                title=title, loc="center left", bbox_to_anchor=(1.0, 0.5), title_fontsize=7, alignment="left"
            )
        stamp(figure, about)
    return figure


def _mark_collapse(history: pd.DataFrame, *axes: Axes) -> None:
    place = collapse_epoch(history.to_dict("records"))
    if place is None:
        return
    epoch = int(history["epoch"].iloc[place - 1])
    for axis in axes:
        axis.axvline(epoch, color="#999999", linewidth=0.8, linestyle=":", zorder=0)
    axes[0].annotate(
        "collapse",
        (epoch, 1.0),
        xycoords=("data", "axes fraction"),
        ha="center",
        va="bottom",
        fontsize=7,
        color="#555555",
    )
