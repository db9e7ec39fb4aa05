"""What stands in figures 1, 3 and 4 and in the overviews: positions, heights, colours, names."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from coprobe.figures import fig01, fig03, fig04, overview
from coprobe.figures.style import COLOURS, NODE_COLOURS

NAMES = [
    "$x_1$ and $",
    "_hidden",
    "µ-Größe ∑ αβγ",
    "A" * 60,
    "a long name with blanks, as people give to their runs $\\frac{",
]


def legend(axis: Axes) -> list[str]:
    found = axis.get_legend()
    return [text.get_text() for text in found.get_texts()] if found else []


def by_label(axis: Axes) -> dict[str, np.ndarray]:
    return {str(line.get_label()): np.asarray(line.get_ydata()) for line in axis.lines if line.get_label()[0] != "_"}


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts that cover each other."""
    figure.canvas.draw()
    unseen = set()  # labels of ticks outside the axis, which are not drawn
    for axis in figure.axes:
        for side in (axis.xaxis, axis.yaxis):
            low, high = side.get_view_interval()
            unseen |= {tick.label1 for tick in side.get_major_ticks() if not low <= tick.get_loc() <= high}
    texts = [t for t in figure.findobj(mpl.text.Text) if t.get_visible() and t not in unseen and t.get_text().strip()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    boxes = [(name, box.padded(-1)) for name, box in boxes if box.width > 3]
    return [(a, b) for i, (a, p) in enumerate(boxes) for b, q in boxes[i + 1 :] if p.overlaps(q)]


def test_figure_1(histories: pd.DataFrame) -> None:
    figure = fig01.draw(histories, about="digits, n = 5")
    top, top_right, bottom, bottom_right = figure.axes
    for axis, run in ((top, "bad"), (top_right, "good")):
        rows = histories[histories["run"] == run]
        assert axis.get_title() == run and axis.get_ylim() == pytest.approx((0, 1.1 * 90))
        for label, column in (("clean", "clean"), ("FGSM", "fgsm"), ("PGD-10", "pgd10")):
            np.testing.assert_allclose(by_label(axis)[label], 100 * rows[column])
    for axis, run in ((bottom, "bad"), (bottom_right, "good")):
        rows = histories[histories["run"] == run]
        assert list(by_label(axis)) == list("ABCDE") and axis.get_xlabel() == "epoch"
        for node, values in by_label(axis).items():
            np.testing.assert_allclose(values, rows[f"v_act_{node}"])
    assert bottom.get_ylim()[0] == 0 and bottom.get_ylim() == bottom_right.get_ylim()
    assert [line.get_color() for line in bottom.lines[:5]] == list(NODE_COLOURS)
    assert (top.get_ylabel(), bottom.get_ylabel()) == ("held-out accuracy (%)", r"$V_\mathrm{act}$")
    assert legend(top_right) == ["clean", "FGSM", "PGD-10"] and legend(bottom_right) == list("ABCDE")
    assert figure.get_supxlabel() == "digits, n = 5"


def test_figure_1_marks_the_collapse(histories: pd.DataFrame) -> None:
    top, top_right, bottom, bottom_right = fig01.draw(histories).axes
    assert [text.get_text() for text in top.texts] == ["collapse"] and not top_right.texts
    for axis in (top, bottom):
        (mark,) = [line for line in axis.lines if line.get_linestyle() == ":"]
        assert list(mark.get_xdata()) == [12, 12]
    assert not [line for axis in (top_right, bottom_right) for line in axis.lines if line.get_linestyle() == ":"]


def test_a_single_epoch_can_be_seen(histories: pd.DataFrame) -> None:
    top, bottom = fig01.draw(histories[:1]).axes
    assert {line.get_marker() for axis in (top, bottom) for line in axis.lines} == {"o"}


def test_figure_3(channels: pd.DataFrame) -> None:
    figure = fig03.draw(channels, about="digits")
    assert len(figure.axes) == 4
    for axis, (node, run) in zip(figure.axes, [("A", "bad"), ("A", "good"), ("B", "bad"), ("B", "good")], strict=True):
        rows = channels[(channels["node"] == node) & (channels["run"] == run)].sort_values("channel")
        points = axis.lines[0]
        assert list(points.get_xdata()) == list(range(16))
        np.testing.assert_allclose(points.get_ydata(), rows["t_act"])
        colour = COLOURS[rows["kind"].iloc[0]]
        assert (
            to_hex(points.get_color()).upper() == colour
            and to_hex(axis.collections[0].get_color()[0]).upper() == colour
        )
        stems = {tuple(segment[1]) for segment in axis.collections[0].get_segments()}
        assert stems == set(zip(range(16), rows["t_act"], strict=True))
        assert axis.get_ylim() == (0, 1) and axis.get_xlim() == (-0.7, 15.7)
        # 0.5 itself is not salient; neighbours share a name.
        assert [text.get_text() for text in axis.texts] == (["2, 3", "12"] if run == "bad" else [])
    first, second, third, _ = figure.axes
    assert (first.get_title(), second.get_title()) == ("bad: CO-affected", "good: stable")
    assert (first.get_ylabel(), third.get_ylabel()) == (r"$T_\mathrm{act}$ at A", r"$T_\mathrm{act}$ at B")
    assert [axis.get_xlabel() for axis in figure.axes] == ["", "", "channel", "channel"]


@pytest.mark.parametrize(("run", "kind", "title"), [("x: stable", "stable", "x: stable"), ("x", "", "x")])
def test_titles_of_figure_3(channels: pd.DataFrame, run: str, kind: str, title: str) -> None:
    axis = fig03.draw(channels[channels["run"] == "good"].assign(run=run, kind=kind)).axes[0]
    assert axis.get_title() == title
    assert to_hex(axis.lines[0].get_color()).upper() == COLOURS.get(kind, "#000000")


def test_figure_4(accuracies: pd.DataFrame) -> None:
    axis = fig04.draw(accuracies).axes[0]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["clean", "FGSM", "PGD-50"]
    assert axis.get_ylabel() == "accuracy (%)"
    assert axis.get_ylim() == pytest.approx((0, min(100, 110 * accuracies["high"].max())))
    bars = [bar for bar in axis.containers if isinstance(bar, mpl.container.BarContainer)]
    whiskers = [c for c in axis.containers if isinstance(c, mpl.container.ErrorbarContainer)]
    assert [bar.get_label() for bar in bars] == legend(axis) == [
        "no mask", r"$T_\mathrm{act}$ > 0.99 (1)", r"$T_\mathrm{act}$ > 0.5 (2)", "variance (2)", "random (2)"
    ]  # fmt: skip
    edges = []
    for bar, whisker, mask in zip(bars, whiskers, accuracies["mask"].unique(), strict=True):
        rows = accuracies[accuracies["mask"] == mask]
        np.testing.assert_allclose([patch.get_height() for patch in bar], 100 * rows["accuracy"])
        assert [round(patch.get_center()[0]) for patch in bar] == [0, 1, 2]
        edges += [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in bar]
        ends = np.array([segment[:, 1] for segment in whisker.lines[2][0].get_segments()])
        np.testing.assert_allclose(ends, 100 * rows[["low", "high"]], atol=1e-9)
    edges.sort()
    assert all(left[1] < right[0] for left, right in pairwise(edges)), "bars overlap"
    assert [(text.get_text(), round(text.xy[0])) for text in axis.texts] == [("0", 2)]
    assert len({to_hex(bar[0].get_facecolor()) for bar in bars}) == 5


@pytest.mark.parametrize("thresholds", [1, 2, 3, 4, 7])
def test_thresholds_have_colours_of_their_own(thresholds: int) -> None:
    masks = ["none", *(f"T_act > 0.{i + 1}" for i in range(thresholds)), "variance", "attribution", "conductance"]
    colours = fig04._colours(masks)
    assert list(colours) and len(set(colours.values())) == len(masks)
    warm = [mpl.colors.rgb_to_hsv(mpl.colors.to_rgb(colours[mask]))[2] for mask in masks[1 : 1 + thresholds]]
    assert warm == sorted(warm, reverse=True)


def test_accuracies_without_masks(accuracies: pd.DataFrame) -> None:
    rows = accuracies[accuracies["mask"] == "none"]
    axis = overview.draw_accuracies(
        pd.concat([rows, rows.assign(noise="uniform:16", accuracy=0.5, low=0.4, high=0.6)])
    ).axes[0]
    heights = [[patch.get_height() for patch in bar] for bar in axis.containers if bar.get_label()[0] != "_"]
    np.testing.assert_allclose(heights, [100 * rows["accuracy"], [50, 50, 50]])
    assert legend(axis) == ["no noise", "noise uniform:16/255"]
    assert legend(overview.draw_accuracies(rows).axes[0]) == []


DRAWERS: dict[str, Callable[[pd.DataFrame], Figure]] = {
    "histories": fig01.draw, "channels": fig03.draw, "accuracies": fig04.draw
}  # fmt: skip


@pytest.mark.parametrize("what", DRAWERS)
def test_settings_of_the_caller_are_left_alone(what: str, request: pytest.FixtureRequest) -> None:
    before = dict(mpl.rcParams)
    frame = request.getfixturevalue(what)
    copy = frame.copy()
    DRAWERS[what](frame).canvas.draw()
    assert dict(mpl.rcParams) == before
    pd.testing.assert_frame_equal(frame, copy)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", DRAWERS)
@pytest.mark.filterwarnings("error")
def test_odd_names_are_shown_and_cover_nothing(what: str, name: str, request: pytest.FixtureRequest) -> None:
    frame = request.getfixturevalue(what)
    column = "mask" if what == "accuracies" else "run"
    odd = {"accuracies": "variance"}.get(what, "bad")
    frame[column] = frame[column].replace(odd, name)
    figure = DRAWERS[what](frame)
    figure.supxlabel(figure.get_supxlabel())
    assert overlaps(figure) == []
    shown = [legend(axis) if what == "accuracies" else [axis.get_title()] for axis in figure.axes]
    letters = "".join("".join(text) for text in shown).replace("\n", "").replace(" ", "").replace(r"\$", "$")
    assert name.replace(" ", "") in letters
    assert len(shown[0]) == (5 if what == "accuracies" else 1)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])
def test_nothing_overlaps_with_several_runs(count: int, channels: pd.DataFrame, histories: pd.DataFrame) -> None:
    many = pd.concat([channels[channels["run"] == "bad"].assign(run=f"run number {i}") for i in range(count)])
    assert overlaps(fig03.draw(many, about="digits, n = 360, ε = 26/255, seed 0")) == []
    many = pd.concat([histories[histories["run"] == "bad"].assign(run=f"run number {i}") for i in range(count)])
    assert overlaps(fig01.draw(many, about="digits, n = 360, ε = 26/255, seed 0")) == []


def test_names_of_neighbouring_channels_do_not_cover_each_other(channels: pd.DataFrame) -> None:
    t_act = np.zeros(64)
    t_act[[55, 60, 62, 63]] = 1, 0.7, 0.95, 0.97
    one = pd.DataFrame({"node": "A", "channel": range(64), "t_act": t_act, "kind": "CO-affected"})
    figure = fig03.draw(pd.concat([one.assign(run=str(i)) for i in range(3)]))
    assert overlaps(figure) == []
