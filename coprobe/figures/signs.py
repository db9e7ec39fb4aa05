"""Pictures of the signs of catastrophic overfitting: a row of panels for each model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from coprobe.figures.style import ATTACK_COLOURS, COLOURS, PAGE, new_figure, paper_style, percent_limits, stamp, wrapped

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The two attacks of the sign, as legends call them, and the keys of their colours.
_ATTACKS = {"fgsm": ("FGSM", "fgsm"), "pgd": ("PGD-10", "pgd10")}


def draw(signs: pd.DataFrame, images: pd.DataFrame, *, about: str = "") -> Figure:
    """Gradient alignment, accuracy over the budget and the loss surface, as far as they were measured.

    Args:
        signs: the table of signs (see `verdict.signs.SignTable`), with columns run (name of the model) and kind
            (which colour it has) for several models.
        images: the values per image, with the column run as well.
        about: what they were made from, shown small.

    Raises:
        ValueError: none of `PICTURED` is among the signs.
    """
    panels = [panel for name, panel in PICTURED.items() if (signs["sign"] == name).any()]
    runs = list(dict.fromkeys(signs["run"]))
    with paper_style():
        figure = new_figure(PAGE * (1 + len(panels)) / 4, 0.3 + 2.1 * len(runs))
        axes = figure.subplots(len(runs), len(panels), squeeze=False)
        for row, run in zip(axes, runs, strict=True):
            mine, own = signs[signs["run"] == run], images[images["run"] == run]
            for axis, panel in zip(row, panels, strict=True):
                panel(axis, mine, own)
            row[0].set_title(wrapped(run, PAGE / 3), loc="left")
        stamp(figure, about)
    return figure


def draw_alignment(axis: Axes, signs: pd.DataFrame, images: pd.DataFrame) -> None:
    """Histogram of the cosines between the gradients at x and at a random point of the ball, and their mean."""
    values = images.loc[images["sign"] == "gradient-alignment", "value"].dropna()
    colour = COLOURS.get(signs["kind"].iloc[0], "#444444")
    weights = np.full(len(values), 100 / max(1, len(values)))
    axis.hist(values, bins=np.linspace(-1, 1, 41).tolist(), weights=weights, color=colour)
    if len(values):
        mean = values.mean()
        axis.axvline(mean, color="black", linewidth=0.8, linestyle="--")
        axis.annotate(
            f"mean {mean:.2f}", (1, 1), xycoords="axes fraction", xytext=(0, 3), textcoords="offset points", ha="right"
        )
    axis.set(xlabel="cos(∇ℓ(x), ∇ℓ(x + η))", ylabel="images (%)", xlim=(-1.02, 1.02))


def draw_over_epsilon(axis: Axes, signs: pd.DataFrame, images: pd.DataFrame) -> None:
    """Accuracy under FGSM and PGD-10 over the budget, with 95 % intervals."""
    rows = signs[signs["sign"] == "accuracy-over-eps"]
    for quantity, (label, key) in _ATTACKS.items():
        line = rows[rows["quantity"] == quantity]
        budgets = line["at"].astype(float).to_numpy()
        colour = ATTACK_COLOURS[key]
        axis.plot(budgets, 100 * line["value"], color=colour, marker="o", markersize=3, label=label, clip_on=False)
        axis.fill_between(budgets, 100 * line["low"], 100 * line["high"], color=colour, alpha=0.2, linewidth=0)
    budgets = sorted({float(at) for at in rows["at"] if at})
    axis.set_xscale("log", base=2)
    axis.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
    axis.xaxis.minorticks_off()
    axis.set(xlabel="ε (255ths, or an L2 length)", ylabel="accuracy (%)", ylim=percent_limits(100 * rows["high"].max()))
    axis.legend()


def draw_surface(axis: Axes, signs: pd.DataFrame, images: pd.DataFrame) -> None:
    """The mean loss on the plane x + a δ + b r, as a map with the image in the middle."""
    rows = signs[(signs["sign"] == "loss-surface") & (signs["quantity"] == "loss")]
    places = rows["at"].str.split(",", expand=True).astype(float)
    grid = rows.assign(a=places[0], b=places[1]).pivot_table(index="b", columns="a", values="value")
    drawn = axis.contourf(grid.columns, grid.index, grid.to_numpy(), levels=20, cmap="cividis")
    axis.plot([0, 1], [0, 0], color="white", linewidth=0.8, marker="o", markersize=3)
    axis.annotate("x", (0, 0), xytext=(-3, 4), textcoords="offset points", color="white", ha="right")
    axis.annotate("FGSM", (1, 0), xytext=(-3, 4), textcoords="offset points", color="white", ha="right")
    bar = axis.figure.colorbar(drawn, ax=axis)
    bar.set_label("mean loss")
    axis.set(xlabel="a (along FGSM)", ylabel="b (along random signs)")


Panel = Callable[["Axes", "pd.DataFrame", "pd.DataFrame"], None]
#: The signs that have a panel.
PICTURED: dict[str, Panel] = {
    "gradient-alignment": draw_alignment,
    "accuracy-over-eps": draw_over_epsilon,
    "loss-surface": draw_surface,
}
