"""Accuracy over the epochs of several recipes, coloured by how their runs ended: the code of Figs. 5 and 6."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from coprobe.figures.style import COLOURS, new_figure, over_seeds, paper_style, percent_limits, shades, stamp, wrapped

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

#: At the end of a line, so that the outcome is seen without colours too.
_MARKERS = {"CO-affected": "X", "stable": "o", "did not converge": "s"}
_LEGEND_INCHES = 1.5


def draw(curves: pd.DataFrame, *, title: str, legend_title: str, about: str) -> Figure:
    """PGD-10 accuracy (top) and clean accuracy (bottom) over the epochs, a line per series, a band over its seeds.

    Args:
        curves: columns series, seed, epoch (from 1), clean, adversarial (fractions), outcome ("CO-affected",
            "stable" or "did not converge", one per series and seed), xi_eval (n of n/255); the order of the rows
            is that of the legend.
        title: of the figure.
        legend_title: what tells the series apart.
        about: what the runs were made from, shown small.
    """
    with paper_style():
        figure = new_figure(4.6, 3.1)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        outcomes = _outcomes(curves)
        for name, colour in _colours(outcomes).items():
            rows = curves[curves["series"] == name]
            marker = _MARKERS.get(_usual(outcomes[name]), "D")
            look = {"label": _label(name, outcomes[name]), "marker": marker, "markevery": [-1], "markersize": 4.5}
            for axis, key, width in ((top, "adversarial", 1.4), (bottom, "clean", 0.9)):
                over_seeds(axis, rows, "epoch", key, color=colour, linewidth=width, clip_on=False, **look)
        budgets = ", ".join(f"{budget:g}/255" for budget in curves["xi_eval"].unique())
        top.set(ylabel=f"PGD-10 accuracy (%)\nat ξ = {budgets}", ylim=percent_limits(100 * curves["adversarial"].max()))
        bottom.set(ylabel="clean (%)", ylim=percent_limits(100 * curves["clean"].max()), xlabel="epoch")
        bottom.xaxis.get_major_locator().set_params(integer=True)
        figure.align_ylabels()
        top.set_title(title, loc="left")
        lines, labels = top.get_legend_handles_labels()
        legend = figure.legend(lines, labels, title=legend_title, loc="outside right upper", title_fontsize=7)
        legend.set_alignment("left")
        stamp(figure, about)
    return figure


def _outcomes(curves: pd.DataFrame) -> dict[str, Counter[str]]:
    """How many seeds of each series ended how."""
    runs = curves.drop_duplicates(["series", "seed"])
    return {str(name): Counter(rows["outcome"]) for name, rows in runs.groupby("series", sort=False)}


def _usual(outcomes: Counter[str]) -> str:
    return outcomes.most_common(1)[0][0]


def _colours(outcomes: dict[str, Counter[str]]) -> dict[str, str]:
    """A colour per series: that of its usual outcome, from light to dark where several series share it."""
    usual = {name: _usual(counts) for name, counts in outcomes.items()}
    colours: dict[str, str] = {}
    for outcome in usual.values():
        alike = [name for name in usual if usual[name] == outcome]
        colours |= zip(alike, shades(COLOURS.get(outcome, "#444444"), len(alike)), strict=True)
    return {name: colours[name] for name in usual}


def _label(name: str, outcomes: Counter[str]) -> str:
    """The series with C_p%, L_co and T_act set as formulas, and below it how its runs ended."""
    outcome, count = outcomes.most_common(1)[0]
    ending = outcome if count == outcomes.total() else f"{outcome} in {count} of {outcomes.total()} seeds"
    shown = re.sub(r"\bC_(\d+(?:\.\d+)?)%", r"$C_{\1\\%}$", wrapped(name, _LEGEND_INCHES, size=7))
    shown = re.sub(r"\b(L_co|T_act)\b", lambda found: rf"${found[0][0]}_\mathrm{{{found[0][2:]}}}$", shown)
    return f"{shown}\n{wrapped(ending, _LEGEND_INCHES, size=7)}"
