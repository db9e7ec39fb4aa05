"""Fig. 10: PGD moves a few channels of a CO-affected model, and all channels of one trained on noisy data alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from coprobe.figures.style import COLOURS, COLUMN, PAGE, new_figure, paper_style, plain, shades, stamp, wrapped

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Share of the channels whose part of the sum is written into each panel (claim C38).
TOP = 0.1
#: An axis is linear where its values span less than this factor.
_LINEAR_UP_TO = 20


def draw(increments: pd.DataFrame, *, between: bool = False, about: str = "") -> Figure:
    """Increments of every channel at every step of PGD: a row of panels per node, a column per model.

    Args:
        increments: columns model, kind (colours the model), node, channel, step (from 1), s (S_k, Eq. 6 without
            tanh and α, between clean images and those of this step), s_step (the same between the images of
            the step before and of this one).
        between: draw s_step instead of s.
        about: what the models were made from, shown small.
    """
    models, nodes = (list(dict.fromkeys(increments[key])) for key in ("model", "node"))
    column = "s_step" if between else "s"
    with paper_style():
        width = min(PAGE, COLUMN * len(models))
        figure = new_figure(width, 0.7 + 1.55 * len(nodes))
        axes = figure.subplots(len(nodes), len(models), sharey="row", squeeze=False)
        for row, node in enumerate(nodes):
            at_node = increments[increments["node"] == node]
            for axis, model in zip(axes[row], models, strict=True):
                shown = at_node[at_node["model"] == model]
                colour = COLOURS.get("".join(shown["kind"].iloc[:1]), "#444444")
                _panel(axis, shown.pivot(index="channel", columns="step", values=column), colour)
                if row == 0:
                    axis.set_title(wrapped(model, 0.65 * width / len(models)), pad=13, color=colour)
                if row == len(nodes) - 1:
                    axis.set_xlabel("channel")
            _scale(axes[row][0], at_node[column])
            axes[row][0].set_ylabel(rf"$S_k$ at {plain(node)}" + (" per step" if between else ""))
        _key(figure, axes, int(increments["step"].max()))
        stamp(figure, about)
    return figure


def share_of_top(values: np.ndarray) -> float:
    """Part of the sum of `values` (one per channel, none negative) in the top 10 % of them, at least one; or nan."""
    count = max(1, round(TOP * len(values)))
    total = values.sum()
    return float(np.sort(values)[-count:].sum() / total) if total > 0 else float("nan")


def _panel(axis: Axes, values: pd.DataFrame, colour: str) -> None:
    """`values`: a row per channel, a column per step, both ascending."""
    from matplotlib.ticker import MaxNLocator

    axis.vlines(values.index, values.min(axis=1), values.max(axis=1), color=colour, linewidth=0.4, alpha=0.5)
    for shade, (_, heights) in zip(shades(colour, values.shape[1]), values.items(), strict=True):
        axis.plot(values.index, heights, "o", color=shade, markersize=1.6, markeredgewidth=0)
    axis.set_xlim(-1, values.index.max() + 1)
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    share = share_of_top(values.iloc[:, -1].to_numpy())
    text = "no increments" if np.isnan(share) else f"top {TOP:.0%} of channels: {share:.0%} of sum"
    axis.annotate(text, (0.5, 1.0), (0, 3), "axes fraction", "offset points", ha="center", fontsize=6, color=colour)


def _scale(axis: Axes, values: pd.Series) -> None:
    """From 0, logarithmic above the smallest tenth of the values that are not 0 where they span a wide range."""
    positive = values[values > 0]
    low = positive.quantile(0.1) if len(positive) else 1
    wide = values.max() > _LINEAR_UP_TO * low
    if wide:
        axis.set_yscale("symlog", linthresh=10 ** np.floor(np.log10(low)))
    axis.set_ylim(0, (1.6 if wide else 1.05) * (values.max() or 1))


def _key(figure: Figure, axes: np.ndarray, steps: int) -> None:
    """A bar that says which shade is which step, in grey, because each kind of model has a ramp of its own."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    greys = ListedColormap(shades("#777777", steps))
    colours = ScalarMappable(BoundaryNorm(np.arange(steps + 1) + 0.5, steps), greys)
    bar = figure.colorbar(colours, ax=axes, fraction=0.02, aspect=20 * axes.shape[0], pad=0.01)
    bar.set_ticks([1, steps])
    bar.set_label("step of PGD", labelpad=-2)
    bar.outline.set_visible(False)
    bar.minorticks_off()
    bar.ax.tick_params(length=0)
