"""Fig. 2: where in the network the nodes A to E lie, drawn from the model's own table of places."""

from __future__ import annotations

import string
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from coprobe.figures.style import NODE_COLOURS, PAGE, new_figure, paper_style, plain, stamp

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches of the page.
_HEIGHT, _MIDDLE, _TALLEST = 1.75, 0.8, 0.68
_IMAGE, _END = 0.55, 1.25  # room for the image on the left, for pooling and classifier on the right
_STAGE = 0.6  # every stage has this much for its label, and more for its places
_SLOT = 0.17  # between the centres of neighbouring places, where there is room

_GAP = 0.8  # slots between two blocks
_GREY = "#999999"


def draw(places: pd.DataFrame, *, about: str = "") -> Figure:
    """The network from image to classifier: a bar per post-ReLU place, a frame per block, a letter per node.

    Args:
        places: columns node (letter or ""), path (of the module), stage (0 is the stem), channels, height, width
            of its feature map, in order of execution.
        about: what the places were read from, shown small.
    """
    laid = _laid_out(places)
    with paper_style():
        figure = new_figure(PAGE, _HEIGHT + 0.3)
        axis = figure.subplots()
        axis.set(xlim=(0, PAGE), ylim=(-0.1, _HEIGHT))
        axis.axis("off")
        axis.plot([_IMAGE / 2, PAGE - 0.3], [_MIDDLE] * 2, color=_GREY, linewidth=0.8, zorder=0)
        for _, block in laid.groupby("block"):
            _frame(axis, block)
        for place in laid.to_dict("records"):
            _bar(axis, place)
        for _, last in laid.drop_duplicates("stage", keep="last").iterrows():
            _caption(axis, last["centre"], f"stage {last['stage']}" if last["stage"] else "stem")
            size = f"{last['channels']}×{last['height']}×{last['width']}"
            axis.text(last["centre"], 0.16, size, ha="center", va="center", fontsize=7, color="#555555")
        _ends(axis, laid.iloc[-1])
        axis.text(0, -0.08, "bar: feature map after a ReLU; frame: block", fontsize=6, color="#666666", va="center")
        stamp(figure, about)
    return figure


def _laid_out(places: pd.DataFrame) -> pd.DataFrame:
    """`places` with x, slot, tall, centre of the stage (inches), and block (a number)."""
    parent = places["path"].str.rpartition(".")[0]
    laid = places.assign(block=((parent != parent.shift()) | (places["stage"] != places["stage"].shift())).cumsum())
    counts = laid.groupby("stage", sort=False).size()
    spare = PAGE - _IMAGE - _END - _STAGE * len(counts)
    left = _IMAGE
    for stage, count in counts.items():
        here = laid["stage"] == stage
        blocks = laid.loc[here, "block"]
        slots = np.arange(count) + _GAP * (blocks - blocks.min())
        room = _STAGE + spare * count / len(laid)
        slot = min(_SLOT, (room - 0.1) / (slots.max() + 1))
        laid.loc[here, "slot"] = slot
        laid.loc[here, "centre"] = left + room / 2
        laid.loc[here, "x"] = left + room / 2 + slot * (slots - slots.max() / 2)
        left += room
    # The square root keeps the maps of the last stage, an eighth as high as the first, visible.
    return laid.assign(tall=_TALLEST * np.sqrt(laid["height"] / laid["height"].max()))


def _frame(axis: Axes, block: pd.DataFrame) -> None:
    tall, around = block["tall"].max() + 0.1, 0.55 * block["slot"].iloc[0]
    left, right = block["x"].min() - around, block["x"].max() + around
    _box(axis, (left + right) / 2, right - left, tall, "#F4F4F4")


def _box(axis: Axes, x: float, wide: float, tall: float, colour: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=0.03"
    corner = (x - wide / 2, _MIDDLE - tall / 2)
    axis.add_patch(FancyBboxPatch(corner, wide, tall, style, facecolor=colour, edgecolor=_GREY, linewidth=0.6))


def _bar(axis: Axes, place: Mapping[Hashable, Any]) -> None:
    """The feature map of a place and, if it is a node, its letter and path above."""
    from matplotlib.patches import Rectangle

    x, tall, wide = place["x"], place["tall"], 0.55 * place["slot"]
    letter = place["node"]
    colour = NODE_COLOURS[string.ascii_uppercase.index(letter)] if letter else "#C8C8C8"
    axis.add_patch(Rectangle((x - wide / 2, _MIDDLE - tall / 2), wide, tall, color=colour, linewidth=0))
    if letter:
        axis.plot([x, x], [_MIDDLE + tall / 2, 1.3], color=colour, linewidth=0.8)
        look = {"boxstyle": "circle,pad=0.25", "facecolor": colour, "edgecolor": "none"}
        axis.text(x, 1.32, letter, ha="center", va="center", fontsize=8, color="white", weight="bold", bbox=look)
        path = "\n.".join(map(plain, place["path"].rsplit(".", 1)))
        axis.text(x, 1.45, path, ha="center", va="bottom", fontsize=6, color="#555555", linespacing=1)


def _caption(axis: Axes, x: float, text: str) -> None:
    axis.text(x, 0.3, text, ha="center", va="center", fontsize=8)


def _ends(axis: Axes, last: pd.Series) -> None:
    """The image, pooling and the classifier, which have no ReLU."""
    pooled, classes = PAGE - 0.95, PAGE - 0.3
    _box(axis, _IMAGE / 2, 0.3, _TALLEST, "white")
    _caption(axis, _IMAGE / 2, "image")
    _box(axis, pooled, 0.08, 0.4, "white")
    _caption(axis, pooled, "pooling")
    axis.text(pooled, 0.16, f"{last['channels']}", ha="center", va="center", fontsize=7, color="#555555")
    _box(axis, classes, 0.08, 0.25, "white")
    _caption(axis, classes, "classifier")
