"""Fig. 6: the channels that L_co acts on have to be the salient ones; as many of high variance do something else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coprobe.figures import curves as shared

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def draw(curves: pd.DataFrame, *, about: str = "") -> Figure:
    """PGD-10 and clean accuracy over the epochs for as many channels in L_co, chosen by T_act and by variance.

    Args:
        curves: as `coprobe.figures.curves.draw` takes them; drawn in their order.
        about: what the runs were made from, shown small.
    """
    title = "Does the choice of channels matter?"
    return shared.draw(curves, title=title, legend_title="channels chosen by", about=about)
