"""Colours, sizes and labels of every figure, and how figures are written."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coprobe._version import __version__
from coprobe.core.files import atomic, check_writable, write_csv
from coprobe.core.text import cut, printable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

PLOT_SUFFIXES = (".png", ".pdf", ".svg")

#: Characters of a label; a name in a file may have a million, and matplotlib would set them all.
_LONGEST_LABEL = 200
#: Characters of one fact in the metadata of a file.
_LONGEST_FACT = 10_000

#: Inches: one column and both columns of a two-column paper.
COLUMN, PAGE = 3.4, 7.0

#: Okabe and Ito's colours, told apart by colour-blind readers: warm for CO-affected, cool for stable, grey for clean.
COLOURS = {
    "CO-affected": "#D55E00",
    "stable": "#0072B2",
    "not robust": "#777777",
    "did not converge": "#777777",
    "clean-trained": "#777777",
    "noise-trained": "#009E73",
}
#: Nodes from shallow to deep, light to dark.
NODE_COLOURS = ("#56B4E9", "#0072B2", "#009E73", "#CC79A7", "#000000")
ATTACK_COLOURS = {"clean": "#777777", "fgsm": "#E69F00", "pgd10": "#D55E00"}


@contextmanager
def paper_style() -> Iterator[None]:
    """Matplotlib settings of the paper's figures inside the block; the caller's settings are as before afterwards."""
    import matplotlib as mpl
    import seaborn as sns

    settings: dict[Any, Any] = {
        **sns.axes_style("ticks"),
        **sns.plotting_context("paper"),
        "font.size": 8,
        "axes.titlesize": 8,
        "axes.labelsize": 8,
        "legend.fontsize": 7,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.6,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "lines.linewidth": 1.4,
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
        "pdf.fonttype": 42,
        "svg.hashsalt": "coprobe",
    }
    with mpl.rc_context(settings):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, drawn without a window and without pyplot's global list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def plain(text: str) -> str:
    """`text` on one line so that matplotlib shows it as it is: no formulas, no name hidden from the legend.

    Every name from a file or a person passes through this or `wrapped` before it is drawn.
    """
    return _literal(cut(printable(text), _LONGEST_LABEL))


def wrapped(text: str, inches: float, *, size: float = 8) -> str:
    """`text` as `plain`, broken into up to three lines that fit into `inches` at a font size in points."""
    columns = max(8, int(inches * 72 / (0.56 * size)))  # a letter is on average 0.56 of the font's size wide
    shown = cut(printable(text), 3 * columns)
    return _literal("\n".join(textwrap.wrap(shown, columns, max_lines=3, placeholder=" …")))


def _literal(shown: str) -> str:
    shown = shown.replace("$", r"\$")
    return f"\u200b{shown}" if shown.startswith("_") else shown


def whiskers(rows: pd.DataFrame) -> list[pd.Series]:
    """Lengths below and above of the intervals of `rows` (accuracy, low, high as fractions), in percent."""
    return [100 * (rows["accuracy"] - rows["low"]).clip(lower=0), 100 * (rows["high"] - rows["accuracy"]).clip(lower=0)]


def percent_limits(highest: float) -> tuple[float, float]:
    """Limits of an axis of accuracies in percent that go up to `highest`: from 0, with some air, at most to 100."""
    return 0, min(100, max(10, 1.1 * highest))


def ramp(colour: str) -> Colormap:
    """A colour map from a light tint of a colour over the colour itself, exactly at 0.5, to a dark shade of it."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    own = np.array(to_rgb(colour))
    # Lighter than this a line is hard to see on paper, darker than this every colour looks black.
    stops = np.stack([0.35 * own + 0.65, own, 0.35 * own])
    return LinearSegmentedColormap.from_list("ramp", stops, N=257)  # odd, so that one entry is the colour


def shades(colour: str, count: int) -> list[str]:
    """That many shades from light to dark around a colour; a single one is the colour itself."""
    from matplotlib.colors import to_hex

    colours = ramp(colour)
    return [to_hex(colours((place + 0.5) / count)) for place in range(count)]


def over_seeds(axis: Axes, rows: pd.DataFrame, x: str, y: str, *, color: str, **line: Any) -> None:
    """Draw column `y` of `rows` against `x`: the mean over the seeds as a line, their range as a band if several.

    Args:
        axis: where to draw.
        rows: columns seed, `x`, `y`; one row per seed and `x`.
        x: name of a column.
        y: name of a column of fractions, drawn in percent.
        color: of the line and, lighter, of the band.
        line: what else `Axes.plot` takes.
    """
    seeds = (100 * rows.set_index(x)[y]).groupby(level=0)
    mean = seeds.mean()
    axis.plot(mean.index, mean, color=color, **line)
    if rows["seed"].nunique() > 1:
        axis.fill_between(mean.index, seeds.min(), seeds.max(), color=color, alpha=0.2, linewidth=0)


def stamp(figure: Figure, text: str) -> None:
    """Say small, in the lower right corner, what the figure was made from (data, n, seed)."""
    if text:
        shown = wrapped(text, figure.get_figwidth(), size=6)
        figure.supxlabel(shown, x=0.995, ha="right", fontsize=6, color="#666666")


def save(figure: Figure, path: str | os.PathLike[str], about: Mapping[Any, Any] | None = None) -> None:
    """Write a figure as PNG (200 dpi), PDF or SVG by suffix, atomically, with `about` in the file's metadata.

    Raises:
        InputError: another suffix, or a target that can't be written.
    """
    path = check_writable(path, PLOT_SUFFIXES)
    facts = [f"{key}: {value}" for key, value in (about or {}).items()]
    described = "; ".join(cut(printable(fact), _LONGEST_FACT) for fact in facts)
    ours = f"coprobe {__version__}"
    # No date, so that the same numbers give the same file.
    metadata: dict[str, dict[str, str | None]] = {
        ".png": {"Software": ours, "Description": described},
        ".pdf": {"Creator": ours, "Subject": described, "CreationDate": None},
        ".svg": {"Creator": ours, "Description": described, "Date": None},
    }
    with atomic(path) as temporary, paper_style():
        figure.savefig(temporary, dpi=200, metadata=metadata[path.suffix])


def save_all(
    figure: Figure, drawn: pd.DataFrame, directory: Path, name: str, about: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write `name`.png and .pdf, and as `name`.csv the numbers that are drawn; returns the paths."""
    paths = [directory / f"{name}{suffix}" for suffix in (".png", ".pdf", ".csv")]
    for path in paths[:2]:
        save(figure, path, about)
    with atomic(paths[2]) as temporary:
        write_csv(drawn, temporary)
    return paths
