"""Fig. 7: attack obfuscation: input noise destroys what the attack put into its own branch of the network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from coprobe.errors import unknown
from coprobe.figures.style import COLOURS, PAGE, new_figure, paper_style, stamp

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

_DATA, _ATTACK, _OTHER = COLOURS["stable"], COLOURS["CO-affected"], "#444444"
_HEIGHT = 2.0  # inches of a panel, as are the positions below

#: Name of a place: what is written there, where in the panel, its colour.
_PLACES = {
    "x + δ": (r"$x+\delta$", (0.42, 1.0), _OTHER),
    "x + δ + δ_R": (r"$x+\delta+\delta_R$", (0.42, 1.0), _OTHER),
    "δ_R": ("noise\n" + r"$\delta_R$", (0.22, 0.25), _OTHER),
    "b_data": (r"$b_\mathrm{data}$", (1.4, 1.65), _DATA),
    "b_adv": (r"$b_\mathrm{adv}$", (1.4, 0.35), _ATTACK),
    "f": ("", (2.4, 1.0), _OTHER),
    "wrong class": ("wrong\nclass", (3.15, 1.0), _ATTACK),
    "right class": ("right\nclass", (3.15, 1.0), _DATA),
}
#: Heights of the channels that the data fill, and places among them of those that the attack raises.
_CHANNELS = (0.12, 0.2, 0.15, 0.22, 0.1, 0.18, 0.14, 0.2)
_RAISED = (2, 5)
_TITLES = {
    "a": "(a) After CO the attack acts through $b_\\mathrm{adv}$ and covers $f$",
    "b": "(b) Noise destroys what is in $b_\\mathrm{adv}$; $b_\\mathrm{data}$ survives",
}


def arrows() -> pd.DataFrame:
    """What Fig. 7 says: the arrows of both panels, as `draw` takes them."""
    import pandas as pd

    rows = [
        ("a", "x + δ", "b_data", "strong", "data pass"),
        ("a", "x + δ", "b_adv", "strong", "attack\nacts here"),
        ("a", "b_data", "f", "weak", "intact,\nbut covered"),
        ("a", "b_adv", "f", "strong", "a few channels\nraised"),
        ("a", "f", "wrong class", "strong", ""),
        ("b", "δ_R", "x + δ + δ_R", "strong", ""),
        ("b", "x + δ + δ_R", "b_data", "strong", "data survive"),
        ("b", "x + δ + δ_R", "b_adv", "weak", "attack\ndestroyed"),
        ("b", "b_data", "f", "strong", "decides"),
        ("b", "b_adv", "f", "weak", "little left"),
        ("b", "f", "right class", "strong", ""),
    ]
    return pd.DataFrame(rows, columns=["panel", "start", "end", "strength", "label"])


def draw(arrows: pd.DataFrame, *, about: str = "") -> Figure:
    """Schematic of the data branch and the adversarial branch that join into the features f.

    Args:
        arrows: columns panel ("a" or "b"), start, end (places: "x + δ", "x + δ + δ_R", "δ_R", "b_data", "b_adv",
            "f", "wrong class", "right class"), strength ("strong" or "weak"), label. A strong arrow from b_adv
            to f raises two of the channels drawn in f.
        about: shown small.

    Raises:
        InputError: a place that the figure does not have.
    """
    with paper_style():
        figure = new_figure(PAGE, _HEIGHT + 0.25)
        for axis, (panel, title) in zip(figure.subplots(1, 2), _TITLES.items(), strict=True):
            shown = arrows[arrows["panel"] == panel]
            axis.set(xlim=(0, PAGE / 2), ylim=(0, _HEIGHT))
            axis.axis("off")
            axis.set_title(title)
            boxes = {name: _place(axis, name) for name in dict.fromkeys([*shown["start"], *shown["end"]])}
            for arrow in shown.to_dict("records"):
                _arrow(axis, arrow, boxes)
            covering = shown[(shown["start"] == "b_adv") & (shown["end"] == "f")]
            if "f" in boxes:
                _features(axis, raised=(covering["strength"] == "strong").any())
        stamp(figure, about)
    return figure


def _place(axis: Axes, name: str) -> Patch:
    """Draw a place; returns the box at which arrows end."""
    from matplotlib.patches import FancyBboxPatch

    if name not in _PLACES:
        raise unknown("place of Fig. 7", name, _PLACES)
    text, (x, y), colour = _PLACES[name]
    if name == "f":
        box = FancyBboxPatch((x - 0.25, y - 0.25), 0.5, 0.5, "round,pad=0.02", facecolor="white", edgecolor=colour)
        axis.text(x + 0.19, y + 0.16, "$f$", ha="center", va="center", fontsize=8, color=colour)
        axis.add_patch(box)
        return box
    look = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": colour}
    shown = axis.text(x, y, text, ha="center", va="center", fontsize=8, color=colour, bbox=look)
    return cast("Patch", shown.get_bbox_patch())


def _features(axis: Axes, *, raised: bool) -> None:
    """The channels of f as bars inside its box."""
    x, y = _PLACES["f"][1]
    left = x - 0.22 + 0.055 * np.arange(len(_CHANNELS))
    heights, colours = np.array(_CHANNELS), np.full(len(_CHANNELS), _DATA)
    if raised:
        heights[list(_RAISED)] = 0.44
        colours[list(_RAISED)] = _ATTACK
    axis.bar(left, heights, 0.04, bottom=y - 0.23, align="edge", color=list(colours))


def _arrow(axis: Axes, arrow: dict[str, Any], boxes: dict[str, Patch]) -> None:
    from matplotlib.patches import FancyArrowPatch

    start, end = arrow["start"], arrow["end"]
    (x0, y0), (x1, y1) = _PLACES[start][1], _PLACES[end][1]
    colour = next((_PLACES[name][2] for name in (start, end) if name.startswith("b_")), _OTHER)
    look = {"linewidth": 0.8, "linestyle": (0, (3, 2))} if arrow["strength"] == "weak" else {"linewidth": 2.2}
    axis.add_patch(
        FancyArrowPatch(
            (x0, y0), (x1, y1), arrowstyle="-|>", mutation_scale=9, color=colour,
            patchA=boxes[start], patchB=boxes[end], shrinkA=2, shrinkB=2, **look,
        )
    )  # fmt: skip
    # Outside the diamond of the four arrows, where nothing else stands.
    upper, left = max(y0, y1) > _HEIGHT / 2, (x0 + x1) / 2 < _PLACES["b_data"][1][0]
    axis.annotate(
        arrow["label"], ((x0 + x1) / 2, (y0 + y1) / 2), (-6 if left else 6, 2 if upper else -2),
        textcoords="offset points", ha="right" if left else "left", va="bottom" if upper else "top",
        fontsize=6.5, color=colour,
    )  # fmt: skip
