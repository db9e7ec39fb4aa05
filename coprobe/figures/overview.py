"""Figures that the paper does not have: accuracies as bars, a network's places, the scale of a file's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from coprobe.figures.bars import Bars, Look, draw_bars
from coprobe.figures.style import COLUMN, PAGE, new_figure, paper_style, percent_limits, plain, stamp, wrapped

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from coprobe.nodes import Place


def draw_accuracies(accuracies: pd.DataFrame, *, about: str = "") -> Figure:
    """Accuracy per attack with 95 % intervals, a colour per noise.

    Args:
        accuracies: columns attack (as people read it), noise, accuracy, low, high (fractions).
        about: what the model was made from, shown small.
    """
    attacks, noises = (list(dict.fromkeys(accuracies[key])) for key in ("attack", "noise"))
    colours = ("#777777", "#0072B2", "#D55E00", "#009E73", "#CC79A7")
    series = [
        Bars(
            "no noise" if noise == "none" else f"noise {noise}/255",
            Look(colour),
            accuracies[accuracies["noise"] == noise],
        )
        for noise, colour in zip(noises, cycle(colours), strict=False)
    ]
    with paper_style():
        figure = new_figure(COLUMN if len(attacks) * len(noises) <= 10 else PAGE, 2.4)
        axis = figure.subplots()
        draw_bars(axis, attacks, series)
        axis.set(ylabel="accuracy (%)", ylim=percent_limits(100 * accuracies["high"].max()))
        if len(noises) > 1:
            axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        stamp(figure, about)
    return figure


def draw_places(places: Sequence[Place], *, title: str) -> Figure:
    """Channels and side length of every post-ReLU place in the order of execution; A…E stand out.

    Args:
        places: from `coprobe.nodes.places`.
        title: name of the architecture.
    """
    with paper_style():
        figure = new_figure(COLUMN, 0.9 + 0.16 * len(places))
        axis = figure.subplots()
        colours = ["#D55E00" if place.letter else "#BBBBBB" for place in places]
        axis.barh(range(len(places)), [place.shape[0] for place in places], color=colours)
        for row, place in enumerate(places):
            size = "×".join(map(str, place.shape))
            axis.annotate(
                f" {plain(place.letter)} {size}".replace("  ", " "), (place.shape[0], row), va="center", fontsize=6
            )
        axis.set(yticks=range(len(places)), yticklabels=[plain(place.path) for place in places], xlabel="channels")
        axis.set_title(wrapped(f"{title}: places behind activation functions", COLUMN))
        axis.margins(x=0.25, y=0.01)
        axis.invert_yaxis()
    return figure


def draw_weights(scales: Mapping[str, float], *, title: str) -> Figure:
    """Root mean square of every weight tensor, on a logarithmic scale.

    Args:
        scales: weight name to root mean square, in the order of the file.
        title: name of the file.
    """
    with paper_style():
        figure = new_figure(PAGE, 2.4)
        axis = figure.subplots()
        values = [max(value, 1e-12) for value in scales.values()]
        axis.plot(range(len(values)), values, "o", markersize=2.5, color="#0072B2")
        axis.set(yscale="log", xlabel="tensor, in the order of the file", ylabel="root mean square")
        axis.set_title(wrapped(title, PAGE))
    return figure
