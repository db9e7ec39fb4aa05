"""Colours, sizes and labels of every figure, and how figures are written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coprobe._version import __version__
from coprobe.files import atomic, check_writable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PLOT_SUFFIXES = (".png", ".pdf", ".svg")

#: Inches: one column and both columns of a two-column paper.
COLUMN, PAGE = 3.4, 7.0

#: Okabe and Ito's colours, told apart by colour-blind readers: warm for CO-affected, cool for stable, grey for clean.
COLOURS = {
    "CO-affected": "#D55E00",
    "stable": "#0072B2",
    "not robust": "#777777",
    "did not converge": "#777777",
}
#: Nodes from shallow to deep, light to dark.
NODE_COLOURS = ("#56B4E9", "#0072B2", "#009E73", "#CC79A7", "#000000")
ATTACK_COLOURS = {"clean": "#777777", "fgsm": "#E69F00", "pgd10": "#D55E00"}


@contextmanager
def paper_style() -> Iterator[None]:
    """Matplotlib settings of the paper's figures inside the block; the caller's settings are as before afterwards."""
    import matplotlib as mpl

    settings: dict[Any, Any] = {
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
    """`text` so that matplotlib shows it as it is: no formulas, no name hidden from the legend."""
    shown = "".join(c if c.isprintable() else "?" for c in text).replace("$", r"\$")
    return f"\u200b{shown}" if shown.startswith("_") else shown


def stamp(figure: Figure, text: str) -> None:
    """Say small, in the lower right corner, what the figure was made from (data, n, seed)."""
    figure.supxlabel(plain(text), x=0.995, ha="right", fontsize=5, color="#777777")


def save(figure: Figure, path: str | os.PathLike[str], about: Mapping[Any, Any] | None = None) -> None:
    """Write a figure as PNG (200 dpi), PDF or SVG by suffix, atomically, with `about` in the file's metadata.

    Raises:
        InputError: another suffix, or a target that can't be written.
    """
    path = check_writable(path, PLOT_SUFFIXES)
    described = "; ".join(f"{key}: {value}" for key, value in (about or {}).items())
    key = {".png": "Description", ".pdf": "Subject", ".svg": "Description"}[path.suffix]
    creator = {"Creator": f"coprobe {__version__}"} if path.suffix != ".png" else {"Software": f"coprobe {__version__}"}
    with atomic(path) as temporary, paper_style():
        figure.savefig(temporary, dpi=200, metadata={**creator, key: described})


def save_all(
    figure: Figure, drawn: pd.DataFrame, directory: Path, name: str, about: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write `name`.png and .pdf, and as `name`.csv the numbers that are drawn; returns the paths."""
    paths = [directory / f"{name}{suffix}" for suffix in (".png", ".pdf", ".csv")]
    for path in paths[:2]:
        save(figure, path, about)
    with atomic(paths[2]) as temporary:
        drawn.to_csv(temporary, index=False)
    return paths
