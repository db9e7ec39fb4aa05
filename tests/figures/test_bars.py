"""What stands in the figures of grouped bars, 8, 9, 11 and 12: heights, places, intervals, colours, hatches, names."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure

from coprobe.figures import bars, fig08, fig09, fig11, fig12
from coprobe.figures.style import COLOURS
from tests.figures.test_drawn import NAMES, overlaps

ATTACKS = ["clean", "FGSM", "PGD-10", "PGD-20", "PGD-50", "C&W", "APGD-T", "AA-fast"]
NOISE = "U(±16/255)"
ABOUT = "CIFAR-10, n = 10 000 test images, ResNet18, seeds 0, 1, 2"


def measured(**columns: list[object]) -> pd.DataFrame:
    """Every combination of the columns, with accuracies that are all different; every ninth is zero."""
    frame = pd.MultiIndex.from_product(columns.values(), names=columns.keys()).to_frame(index=False)
    accuracy = np.linspace(0.9, 0.1, len(frame)) * (np.arange(len(frame)) % 9 != 5)
    change = np.linspace(-0.1, 0.25, len(frame))
    frame = frame.assign(n=100, accuracy=accuracy, low=accuracy * 0.9, high=accuracy * 1.05 + 0.01)
    frame = frame.assign(change=change, change_low=change - 0.03, change_high=change + 0.02)
    return frame if "noise" in frame else frame.assign(noise=NOISE)


def models(kinds: dict[str, str], **columns: list[object]) -> pd.DataFrame:
    frame = measured(model=list(kinds), **columns)
    return frame.assign(kind=frame["model"].map(kinds))


def for_figure_8(attacks: list[str] = ATTACKS, budgets: tuple[float, ...] = (12, 16)) -> pd.DataFrame:
    kinds = {"with Eq. 10": "stable", "without Eq. 10": "CO-affected"}
    return models(kinds, epsilon=list(budgets), attack=list(attacks))


def for_figure_9(attacks: list[str] = ATTACKS) -> pd.DataFrame:
    kinds = {"stable": "stable", "collapsed": "CO-affected", "clean images only": "clean-trained"}
    return models(kinds, noise=["none", "U(16)"], attack=list(attacks))


def for_figure_11(attacks: list[str] = ATTACKS) -> pd.DataFrame:
    kinds = dict.fromkeys(("δ₀", "δ+δ₀", "{δ₀; δ+δ₀}"), "noise-trained") | {"collapsed": "CO-affected"}
    return models(kinds, attack=list(attacks))


def for_figure_12(attacks: list[str] = ATTACKS) -> pd.DataFrame:
    sources = {f"stable, {xi}/255": xi for xi in (8, 12, 16)}
    shown = [attack for attack in attacks if attack != "clean"] or ["FGSM"]
    frame = measured(source=list(sources), epsilon=[8, 12, 16], noise=["none", "U(16)"], attack=shown)
    noisy = frame["noise"] != "none"
    frame["white_box"] = 0.2 * noisy + 0.01 * frame["epsilon"] * (frame["attack"] == "FGSM")
    return frame.assign(source_xi=frame["source"].map(sources), clean=0.9 - 0.1 * noisy)


FIGURES: dict[str, tuple[Callable[..., Figure], Callable[..., pd.DataFrame], str]] = {
    "8": (fig08.draw, for_figure_8, "model"),
    "9": (fig09.draw, for_figure_9, "model"),
    "11": (fig11.draw, for_figure_11, "model"),
    "12": (fig12.draw, for_figure_12, "source"),
}


def drawn(axis: Axes) -> dict[str, BarContainer]:
    return {str(c.get_label()): c for c in axis.containers if isinstance(c, BarContainer)}


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def assert_bars(axis: Axes, place: int, label: str, rows: pd.DataFrame, columns: tuple[str, str, str]) -> None:
    """The bars in this place of every group are those of `rows` (in the order of the axis), with their intervals."""
    height, low, high = (100 * rows[column].to_numpy() for column in columns)
    found, container = list(drawn(axis).items())[place]
    assert found == label
    np.testing.assert_allclose([patch.get_height() for patch in container], height)
    names = [tick.get_text() for tick in axis.get_figure().axes[-1].get_xticklabels()]  # panels share the lowest one's
    groups = [round(patch.get_center()[0]) for patch in container]
    assert [names[group] for group in groups] == list(rows["attack"])
    whiskers = [c for c in axis.containers if isinstance(c, ErrorbarContainer)][place]
    ends = np.array([segment[:, 1] for segment in whiskers.lines[2][0].get_segments()])
    np.testing.assert_allclose(ends, np.stack([low, high], 1), atol=1e-9)


def assert_apart(axis: Axes) -> None:
    spans = sorted((p.get_x(), p.get_x() + p.get_width()) for container in drawn(axis).values() for p in container)
    assert all(left[1] < right[0] for left, right in pairwise(spans)), "bars overlap"


ACCURACY, CHANGE = ("accuracy", "low", "high"), ("change", "change_low", "change_high")


def test_figure_8() -> None:
    frame = for_figure_8()
    figure = fig08.draw(frame, about=ABOUT)
    top, bottom = figure.axes
    place = 0
    for model in ("with Eq. 10", "without Eq. 10"):
        for budget in (12, 16):
            rows = frame[(frame["model"] == model) & (frame["epsilon"] == budget)]
            label = rf"{model}, $\xi_E$ = {budget}/255"
            assert_bars(top, place, label, rows, ACCURACY)
            assert_bars(bottom, place, label, rows, CHANGE)
            place += 1
    for axis in (top, bottom):
        assert len(drawn(axis)) == 4
        assert_apart(axis)
    assert top.get_ylim() == pytest.approx((0, 100)) and top.get_ylabel() == "accuracy (%)"
    assert bottom.get_ylim() == pytest.approx((110 * -0.13, 110 * 0.27))
    assert bottom.get_ylabel() == "change with\nU(±16/255) (points)"
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["(a)", "(b)"]
    assert [list(line.get_ydata()) for line in bottom.lines if len(line.get_ydata()) == 2] == [[0, 0]]
    assert legend(figure) == ["with Eq. 10", "without Eq. 10", r"$\xi_E$ = 12/255", r"$\xi_E$ = 16/255"]
    assert figure.get_supxlabel() == ABOUT


def test_small_changes_look_small() -> None:
    frame = for_figure_8().assign(change=0.01, change_low=0.006, change_high=0.014)
    assert fig08.draw(frame).axes[1].get_ylim() == (-5, 5)


def test_colours_are_those_of_the_kinds_and_hatches_those_of_the_budgets() -> None:
    for container in drawn(fig08.draw(for_figure_8()).axes[0]).values():
        colour = COLOURS["CO-affected" if "without" in container.get_label() else "stable"]
        for patch in container:
            if "12/255" in container.get_label():
                assert patch.get_hatch() is None
                np.testing.assert_allclose(patch.get_facecolor(), to_rgba(colour), atol=0.01)
            else:
                assert patch.get_hatch() == bars.HATCHES[1]
                np.testing.assert_allclose(patch.get_facecolor(), to_rgba(colour, 0.2), atol=0.01)
                np.testing.assert_allclose(patch.get_edgecolor(), to_rgba(colour), atol=0.01)


def test_clean_images_without_a_budget_count_for_every_budget() -> None:
    frame = for_figure_8(["clean", "FGSM"])
    once = frame[(frame["attack"] != "clean") | (frame["epsilon"] == 12)].copy()
    once.loc[once["attack"] == "clean", "epsilon"] = np.nan
    containers = list(drawn(fig08.draw(once).axes[0]).values())
    first, second = (container.patches[0] for container in containers[:2])
    assert len(containers) == 4 and first.get_height() == second.get_height() == pytest.approx(90)


def test_figure_9() -> None:
    frame = for_figure_9()
    figure = fig09.draw(frame, about=ABOUT)
    (axis,) = figure.axes
    place = 0
    for model in frame["model"].unique():
        for noise, label in (("none", "no noise"), ("U(16)", f"noise {NOISE} added")):
            rows = frame[(frame["model"] == model) & (frame["noise"] == noise)]
            assert_bars(axis, place, f"{model}, {label}", rows, ACCURACY)
            place += 1
    assert_apart(axis)
    names = ["stable", "collapsed", "clean images only", "no noise", f"noise {NOISE} added"]
    assert legend(figure) == names and axis.get_ylabel() == "accuracy (%)"


def test_noise_is_not_spoken_of_where_there_is_none() -> None:
    frame = for_figure_9()
    figure = fig09.draw(frame[frame["noise"] == "none"])
    assert legend(figure) == list(drawn(figure.axes[0])) == ["stable", "collapsed", "clean images only"]


def test_figure_11() -> None:
    frame = for_figure_11()
    figure = fig11.draw(frame)
    names = ["δ₀", "δ+δ₀", "{δ₀; δ+δ₀}", "collapsed"]
    assert legend(figure) == names
    for axis, columns in zip(figure.axes, (ACCURACY, CHANGE), strict=True):
        for place, name in enumerate(names):
            assert_bars(axis, place, name, frame[frame["model"] == name], columns)
        assert_apart(axis)
        faces = [container.patches[0].get_facecolor()[:3] for container in drawn(axis).values()]
        light = [sum(face) for face in faces[:3]]
        assert light == sorted(light, reverse=True) and len(set(light)) == 3
        np.testing.assert_allclose(faces[1], to_rgb(COLOURS["noise-trained"]), atol=0.01)
        np.testing.assert_allclose(faces[3], to_rgb(COLOURS["CO-affected"]), atol=0.01)


def test_models_of_kinds_that_share_a_colour_can_be_told_apart() -> None:
    frame = pd.DataFrame({"model": list("abcda"), "kind": ["not robust", "stable", "clean-trained", "?", "not robust"]})
    colours = bars.model_colours(frame)
    assert list(colours) == list("abcd") and len(set(colours.values())) == 4
    np.testing.assert_allclose(to_rgb(colours["d"]), 0, atol=0.01)


def test_figure_12() -> None:
    frame = for_figure_12()
    figure = fig12.draw(frame.sort_values("source_xi", ascending=False, kind="stable"), about=ABOUT)
    assert len(figure.axes) == 3
    noises = {"none": "no noise", "U(16)": f"noise {NOISE} added"}
    for axis, letter, budget in zip(figure.axes, "abc", (8, 12, 16), strict=True):
        shown = frame[frame["epsilon"] == budget]
        for place, source in enumerate(frame["source"].unique()):
            for step, (noise, label) in enumerate(noises.items()):
                rows = shown[(shown["source"] == source) & (shown["noise"] == noise)]
                assert_bars(axis, 2 * place + step, f"crafted on {source}, {label}", rows, ACCURACY)
        for step, (noise, label) in enumerate(noises.items()):
            rows = shown[(shown["source"] == "stable, 8/255") & (shown["noise"] == noise)]
            own = ("white_box",) * 3
            assert_bars(axis, 6 + step, f"crafted on the model itself, {label}", rows, own)
        assert_apart(axis)
        assert axis.get_title(loc="left") == rf"({letter}) $\xi_E$ = {budget}/255"
        lines = {line.get_linestyle(): line.get_ydata()[0] for line in axis.lines if "clean" in str(line.get_label())}
        assert lines == pytest.approx({"--": 90, ":": 80})
        faces = [to_rgb(container.patches[0].get_facecolor()[:3]) for container in drawn(axis).values()]
        assert sum(faces[0]) > sum(faces[2]) > sum(faces[4])
        np.testing.assert_allclose(faces[6], to_rgb(COLOURS["CO-affected"]), atol=0.01)
    names = [f"crafted on {name}" for name in [*frame["source"].unique(), "the model itself"]]
    assert legend(figure) == [*names, *noises.values(), *(f"clean images, {noise}" for noise in noises.values())]


def test_figure_12_without_a_white_box_and_noise() -> None:
    frame = for_figure_12()
    figure = fig12.draw(frame[frame["noise"] == "none"].assign(white_box=np.nan))
    assert legend(figure) == [*(f"crafted on {source}" for source in frame["source"].unique()), "clean images"]
    assert len(drawn(figure.axes[0])) == 3


def test_bars_of_nothing_say_so_and_missing_ones_do_not() -> None:
    frame = for_figure_11(["clean", "FGSM", "AA"]).assign(accuracy=0.5, low=0.4, high=0.6)
    frame.loc[1, ["accuracy", "low"]] = 0.0
    frame = frame.drop(index=2)
    frame.loc[4, ["accuracy", "low", "high"]] = np.nan
    top = fig11.draw(frame).axes[0]
    first, second, *_ = drawn(top).values()
    (zero,) = top.texts
    assert zero.get_text() == "0" and zero.xy == pytest.approx((first.patches[1].get_center()[0], 60))
    assert [round(patch.get_center()[0]) for patch in first] == [0, 1]
    assert [round(patch.get_center()[0]) for patch in second] == [0, 2]


@pytest.mark.slow
@pytest.mark.parametrize("attacks", [["PGD-10"], ATTACKS], ids=len)
@pytest.mark.parametrize("which", FIGURES)
@pytest.mark.filterwarnings("error")
def test_nothing_is_covered_and_nothing_changed(which: str, attacks: list[str]) -> None:
    draw, frame, column = FIGURES[which]
    every = frame(attacks)
    for shown in (every, every[every[column] == every[column].iloc[0]]):
        copy, settings = shown.copy(), dict(mpl.rcParams)
        assert overlaps(draw(shown, about=ABOUT)) == []
        pd.testing.assert_frame_equal(shown, copy)
        assert dict(mpl.rcParams) == settings


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", ["8", "12"])
@pytest.mark.filterwarnings("error")
def test_odd_names_are_shown_and_cover_nothing(which: str, name: str) -> None:
    draw, frame, column = FIGURES[which]
    odd = frame(["FGSM", "PGD-10"])
    odd[column] = odd[column].replace(odd[column].iloc[0], name)
    figure = draw(odd, about=ABOUT)
    assert overlaps(figure) == []
    letters = "".join(legend(figure)).replace("\n", "").replace(" ", "").replace(r"\$", "$")
    assert name.replace(" ", "") in letters


@pytest.mark.slow
def test_many_models_with_long_names() -> None:
    kinds = {f"a model whose name is rather long, number {i}": "stable" for i in range(10)}
    figure = fig08.draw(models(kinds, epsilon=[12, 16], attack=list(ATTACKS)), about=ABOUT)
    assert overlaps(figure) == [] and len(legend(figure)) == 12
    assert figure.axes[0].get_window_extent().height > 80
