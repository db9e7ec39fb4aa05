"""Grouped bars of accuracy: a group per attack, a colour per model, a hatch per budget or noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from coprobe.figures.style import (
    COLOURS,
    COLUMN,
    PAGE,
    new_figure,
    paper_style,
    percent_limits,
    plain,
    shades,
    stamp,
    whiskers,
    wrapped,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Of the first, second, … budget or noise; the first one's bars are full.
HATCHES = ("", "//////", "......", "xxxxxx")
#: In the legend, of a hatch that stands for a budget or noise with any model.
ANY_MODEL = "#222222"


@dataclass(frozen=True)
class Look:
    """Full bars of a colour, or hatched in it on a pale ground."""

    colour: str
    hatch: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of matplotlib's patches."""
        if not self.hatch:
            return {"facecolor": self.colour, "linewidth": 0}
        return {
            "facecolor": (self.colour, 0.2),
            "edgecolor": self.colour,
            "linewidth": 0.4,
            "hatch": self.hatch,
        }


@dataclass(frozen=True)
class Bars:
    """Bars of one look.

    Attributes:
        label: in the legend.
        look: colour and hatch.
        rows: columns attack, accuracy, low, high (fractions); one row per attack, some may be missing.
    """

    label: str
    look: Look
    rows: pd.DataFrame


def draw_bars(axis: Axes, attacks: Sequence[str], series: Sequence[Bars]) -> None:
    """Bars in percent with their intervals: a group per attack and in it a place for each of `series`.

    The place of an accuracy that is missing stays empty; a bar too low to be seen has a 0.
    """
    width = 0.84 / len(series)
    for place, bars in enumerate(series):
        rows = bars.rows.dropna(subset=["accuracy"])
        x = [attacks.index(attack) + (place - (len(series) - 1) / 2) * width for attack in rows["attack"]]
        axis.bar(x, 100 * rows["accuracy"], width * 0.92, label=bars.label, **bars.look.settings)
        axis.errorbar(x, 100 * rows["accuracy"], whiskers(rows), fmt="none", ecolor="#333333", elinewidth=0.5)
        tops = 100 * rows[["accuracy", "high"]].max(axis=1)
        for middle, accuracy, top in zip(x, rows["accuracy"], tops, strict=True):
            if abs(accuracy) < 0.005:
                axis.annotate("0", (middle, top), (0, 1), textcoords="offset points", ha="center", fontsize=5.5)
    axis.set(xticks=range(len(attacks)), xticklabels=[plain(attack) for attack in attacks])
    axis.tick_params(axis="x", length=0)


def by_model(rows: pd.DataFrame, colours: Mapping[str, str]) -> list[Bars]:
    """Bars per model, in the order of `colours`, and within it per level, in the order of the rows.

    Args:
        rows: as for `Bars`, with columns model and level (as the legend shows it); rows whose level is missing count
            for every level (clean images have no budget).
        colours: of the models.
    """
    return [
        Bars(
            joined(plain(model), level),
            Look(colour, hatch),
            rows[(rows["model"] == model) & ((rows["level"] == level) | rows["level"].isna())],
        )
        for model, colour in colours.items()
        for level, hatch in _hatches(rows).items()
    ]


def joined(*parts: str) -> str:
    """The parts that are not empty, with commas between them."""
    return ", ".join(filter(None, parts))


def _hatches(rows: pd.DataFrame) -> dict[str, str]:
    levels = rows["level"].dropna().unique()
    return {level: HATCHES[place % len(HATCHES)] for place, level in enumerate(levels)}


def model_colours(rows: pd.DataFrame) -> dict[str, str]:
    """Every model's colour by its kind; models whose kinds share a colour get shades of it."""
    kinds = rows.drop_duplicates("model").set_index("model")["kind"]
    base = kinds.map(lambda kind: COLOURS.get(kind, "#000000"))
    colours: dict[str, str] = {}
    for colour, models in base.groupby(base).groups.items():
        colours |= zip(models, shades(str(colour), len(models)), strict=True)
    return {model: colours[model] for model in kinds.index}


def budget_label(epsilon: float) -> str:
    """A budget of `epsilon`/255 at evaluation."""
    return rf"$\xi_E$ = {epsilon:g}/255"


def noise_labels(noises: pd.Series) -> pd.Series:
    """Noises (none, U(16)) as legends name them (no noise, noise U(±16/255) added); empty if all are none."""
    if set(noises) == {"none"}:
        return noises.map(lambda _: "")
    shown = noises.str.replace(r"^U\((.+)\)$", r"U(±\1/255)", regex=True).map(plain)
    return ("noise " + shown + " added").where(noises != "none", "no noise")


def figure_width(attacks: Sequence[str], bars: int) -> float:
    """One column where all groups of so many bars and the attacks' names have room in it, otherwise both, in inches."""
    group = max(0.09 * bars, 0.08 + 0.06 * max(map(len, attacks)))
    return COLUMN if len(attacks) * group < COLUMN - 0.6 else PAGE


def handles(rows: pd.DataFrame, colours: Mapping[str, str]) -> list[Artist]:
    """What a legend shows for `by_model`: the models' colours, then the levels' hatches where levels have names."""
    from matplotlib.patches import Patch

    models = [(wrapped(model, COLUMN - 0.6, size=7), Look(colour)) for model, colour in colours.items()]
    levels = [(level, Look(ANY_MODEL, hatch)) for level, hatch in _hatches(rows).items() if level]
    return [Patch(label=label, **look.settings) for label, look in models + levels]


def legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """A legend above the panels, in as few rows as have room; the figure grows by its height."""
    import numpy as np

    lines = [str(handle.get_label()).split("\n") for handle in handles]
    # At 7 points a letter is about 0.055 inches wide and a line 0.15 high; the patch takes 0.45 inches.
    widths = [0.45 + 0.055 * max(map(len, label)) for label in lines]
    room = figure.get_figwidth()
    fitting = (n for n in range(len(widths), 1, -1) if sum(map(max, np.array_split(widths, n))) < room)
    columns = next(fitting, 1)
    rows = ceil(len(widths) / columns) * max(map(len, lines))
    figure.set_figheight(figure.get_figheight() + 0.15 * rows)
    figure.legend(handles=handles, loc="outside upper center", ncols=columns)


def draw_with_change(accuracies: pd.DataFrame, *, about: str) -> Figure:
    """Two panels of bars: (a) accuracy, (b) by how many percentage points noise changes it.

    Args:
        accuracies: as for `by_model`, with columns kind, change, change_low, change_high (fractions) and noise
            (of panel (b), as its axis names it).
        about: what the models were made from, shown small.
    """
    attacks, noise = list(dict.fromkeys(accuracies["attack"])), accuracies["noise"].iloc[0]
    changes = accuracies.assign(**{to: accuracies[of] for of, to in _CHANGE.items()})
    colours = model_colours(accuracies)
    series = by_model(accuracies, colours)
    with paper_style():
        figure = new_figure(figure_width(attacks, len(series)), 3.4)
        top, bottom = figure.subplots(2, 1, sharex=True)
        draw_bars(top, attacks, series)
        draw_bars(bottom, attacks, by_model(changes, colours))
        top.set(ylabel="accuracy (%)", ylim=percent_limits(100 * accuracies["high"].max()))
        bottom.set(ylabel=f"change with\n{plain(noise)} (points)", ylim=_change_limits(changes))
        bottom.axhline(0, color="#333333", linewidth=0.6)
        for axis, letter in ((top, "a"), (bottom, "b")):
            axis.set_title(f"({letter})", loc="left")
        legend(figure, handles(accuracies, colours))
        stamp(figure, about)
    return figure


_CHANGE = {"change": "accuracy", "change_low": "low", "change_high": "high"}


def _change_limits(changes: pd.DataFrame) -> tuple[float, float]:
    """Limits with some air, in percentage points, at least ±5, so that changes by nothing look like nothing."""
    values = 110 * changes[list(_CHANGE.values())]
    return min(-5, values.min(axis=None)), max(5, values.max(axis=None))
