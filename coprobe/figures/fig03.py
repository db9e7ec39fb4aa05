"""Fig. 3: in a CO-affected model a few channels differ between clean and adversarial images; in a stable one none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coprobe.figures.style import COLOURS, PAGE, new_figure, paper_style, plain, stamp

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SALIENT = 0.5


def draw(channels: pd.DataFrame, *, about: str = "") -> Figure:
    """T_act of every channel (Eq. 6): a row of panels per node, a column per model.

    Args:
        channels: columns run, kind (verdict of the model), node, channel, t_act.
        about: what the models were made from, shown small.
    """
    runs, nodes = (list(dict.fromkeys(channels[key])) for key in ("run", "node"))
    with paper_style():
        figure = new_figure(min(PAGE, 3.4 * len(runs)), 0.5 + 1.5 * len(nodes))
        axes = figure.subplots(len(nodes), len(runs), sharey=True, squeeze=False)
        for row, node in enumerate(nodes):
            for column, run in enumerate(runs):
                axis = axes[row][column]
                shown = channels[(channels["run"] == run) & (channels["node"] == node)].sort_values("channel")
                colour = COLOURS.get(shown["kind"].iloc[0], "#777777") if len(shown) else "#777777"
                axis.vlines(shown["channel"], 0, shown["t_act"], color=colour, linewidth=1.2)
                axis.plot(shown["channel"], shown["t_act"], "o", color=colour, markersize=2.5, clip_on=False)
                axis.axhline(SALIENT, color="#999999", linewidth=0.6, linestyle=":", zorder=0)
                _name_salient(axis, shown)
                axis.set(ylim=(0, 1.0), xlim=(-0.7, len(shown) - 0.3))
                axis.xaxis.get_major_locator().set_params(integer=True)
                if row == 0:
                    axis.set_title(plain(run), pad=10)
                if row == len(nodes) - 1:
                    axis.set_xlabel("channel")
            axes[row][0].set_ylabel(rf"$T_\mathrm{{act}}$ at {plain(node)}")
        if about:
            stamp(figure, about)
    return figure


def _name_salient(axis: object, shown: pd.DataFrame, most: int = 4) -> None:
    """Write the number of the few most salient channels beside their marks."""
    salient = shown[shown["t_act"] > SALIENT].nlargest(most, "t_act")
    for channel, value in zip(salient["channel"], salient["t_act"], strict=True):
        axis.annotate(  # type: ignore[attr-defined]
            str(channel), (channel, value), xytext=(3, 1), textcoords="offset points", fontsize=6, annotation_clip=False
        )
