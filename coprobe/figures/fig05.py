"""Fig. 5: enlarging the feature difference of a few channels (L_co, Eq. 9) induces catastrophic overfitting."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from coprobe.figures import curves as shared

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def draw(curves: pd.DataFrame, *, about: str = "") -> Figure:
    """PGD-10 and clean accuracy over the epochs for each share of channels in L_co, from none to the largest share.

    Args:
        curves: as `coprobe.figures.curves.draw` takes them, in any order; series are named "C_1% …" by their share.
        about: what the runs were made from, shown small.
    """
    ordered = curves.sort_values("series", key=lambda names: names.map(_share), kind="stable")
    title = r"Can $L_\mathrm{co}$ induce CO?"
    return shared.draw(ordered, title=title, legend_title=r"channels in $L_\mathrm{co}$", about=about)


def _share(series: str) -> float:
    """Percent of the channels that the name of a series gives; 0 if it names none."""
    found = re.match(r"C_(\d+(?:\.\d+)?)%", series)
    return float(found[1]) if found else 0.0
