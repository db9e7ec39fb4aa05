"""Fig. 3: in a CO-affected model a few channels differ between clean and adversarial images; in a stable one none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coprobe.core.defaults import SALIENT
from coprobe.figures.style import COLOURS, COLUMN, PAGE, new_figure, paper_style, plain, stamp, wrapped

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Channels whose number is written beside their mark.
_NAMED = 4


def draw(channels: pd.DataFrame, *, about: str = "") -> Figure:
    """T_act of every channel (Eq. 6): a row of panels per node, a column per model.

    Args:
        channels: columns run, kind (the model's verdict, which colours it; empty if unknown), node, channel, t_act.
        about: what the models were made from, shown small.
    """
    runs, nodes = (list(dict.fromkeys(channels[key])) for key in ("run", "node"))
    with paper_style():
        width = min(PAGE, COLUMN * len(runs))
        figure = new_figure(width, 0.6 + 1.5 * len(nodes))
        axes = figure.subplots(len(nodes), len(runs), sharey=True, squeeze=False)
        for row, node in enumerate(nodes):
            for column, run in enumerate(runs):
                axis = axes[row][column]
                shown = channels[(channels["run"] == run) & (channels["node"] == node)].sort_values("channel")
                _stems(axis, shown, width / len(runs))
                if row == 0:
                    axis.set_title(wrapped(_title(run, shown), 0.8 * width / len(runs)), pad=12)
                if row == len(nodes) - 1:
                    axis.set_xlabel("channel")
            axes[row][0].set_ylabel(rf"$T_\mathrm{{act}}$ at {plain(node)}")
        stamp(figure, about)
    return figure


def _title(run: str, shown: pd.DataFrame) -> str:
    """The run and, where its name does not say it, its kind."""
    kind = "".join(shown["kind"].iloc[:1])
    return run if kind in run else f"{run}: {kind}"


def _stems(axis: Axes, shown: pd.DataFrame, inches: float) -> None:
    from matplotlib.ticker import MaxNLocator

    colour = COLOURS.get("".join(shown["kind"].iloc[:1]), "#000000")
    axis.vlines(shown["channel"], 0, shown["t_act"], color=colour, linewidth=1.2)
    axis.plot(shown["channel"], shown["t_act"], "o", color=colour, markersize=2.5, clip_on=False)
    axis.axhline(SALIENT, color="#999999", linewidth=0.6, linestyle=":", zorder=0)
    axis.set(ylim=(0, 1), xlim=(-0.7, len(shown) - 0.3), yticks=(0, 0.25, 0.5, 0.75, 1))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    salient = shown[shown["t_act"] > SALIENT].nlargest(_NAMED, "t_act").sort_values("channel")
    # Names less than 22 points apart would cover each other, so they share a place.
    group = (salient["channel"].diff() > 22 / (60 * inches) * len(shown)).cumsum()
    for _, rows in salient.groupby(group):
        centre = rows["channel"].mean()
        side = "right" if centre > 0.9 * len(shown) else "left" if centre < 0.1 * len(shown) else "center"
        edge = rows["channel"].max() if side == "right" else rows["channel"].min() if side == "left" else centre
        name = ", ".join(map(str, rows["channel"]))
        axis.annotate(
            name,
            (edge, rows["t_act"].max()),
            xytext=(0, 3),
            textcoords="offset points",
            ha=side,
            fontsize=6,
            annotation_clip=False,
        )
