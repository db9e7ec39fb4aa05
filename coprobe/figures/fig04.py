"""Fig. 4: masking the salient channels gives a CO-affected model its accuracy back; other channels don't."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coprobe.figures.bars import Bars, Look, draw_bars
from coprobe.figures.style import PAGE, new_figure, paper_style, percent_limits, plain, stamp

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

#: What the paper compares: thresholds α2 of Eq. 7, and selectors of as many other channels.
ALPHA2 = (0.99, 0.5, 0.1)
COMPARED = ("variance", "random")
_THRESHOLD_COLOURS = ("#FBDCC4", "#D55E00", "#5E2900")
_OTHERS = {"none": "#777777", "variance": "#0072B2", "variance-clean": "#56B4E9", "random": "#B8B8B8"}
_SPARE = ("#009E73", "#CC79A7", "#F0E442")


def draw(accuracies: pd.DataFrame, *, about: str = "") -> Figure:
    """Bars of accuracy with 95 % intervals: a group per attack, a bar per mask.

    Args:
        accuracies: columns attack (as people read it), mask, masked (number of channels), accuracy, low,
            high (fractions); the order of the rows is the order of the bars.
        about: what the model was made from, shown small.
    """
    attacks = list(dict.fromkeys(accuracies["attack"]))
    masks = list(dict.fromkeys(accuracies["mask"]))
    colours = _colours(masks)
    series = []
    for mask in masks:
        rows = accuracies[accuracies["mask"] == mask]
        name = plain(mask).replace("T_act", r"$T_\mathrm{act}$")
        label = f"{name} ({rows['masked'].iloc[0]})" if mask != "none" else "no mask"
        series.append(Bars(label, Look(colours[mask]), rows))
    with paper_style():
        figure = new_figure(PAGE if len(attacks) * len(masks) > 12 else 4.6, 2.6)
        axis = figure.subplots()
        draw_bars(axis, attacks, series)
        axis.set(ylabel="accuracy (%)", ylim=percent_limits(100 * accuracies["high"].max()))
        axis.legend(title="masked (channels)", loc="center left", bbox_to_anchor=(1.0, 0.5), title_fontsize=7)
        stamp(figure, about)
    return figure


def _colours(masks: list[str]) -> dict[str, str]:
    """A colour per mask: thresholds from light to dark as they fall, the others by name."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    thresholds = [mask for mask in masks if mask.startswith(("T_act", "top"))]
    ramp = LinearSegmentedColormap.from_list("thresholds", _THRESHOLD_COLOURS)
    warm = {mask: to_hex(ramp((i + 0.5) / len(thresholds))) for i, mask in enumerate(thresholds)}
    spare = iter(_SPARE)
    return warm | {mask: _OTHERS.get(mask) or next(spare, "#444444") for mask in masks if mask not in warm}
