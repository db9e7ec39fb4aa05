"""Figs. 5 and 6: accuracies over the epochs, coloured by how the runs ended."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from coprobe.figures import fig05, fig06
from coprobe.figures.style import COLOURS, shades
from tests.figures.test_drawn import overlaps

EPOCHS = np.arange(1, 21)


def run(series: str, outcome: str, seed: int = 0, epochs: int = 20) -> pd.DataFrame:
    epoch = EPOCHS[:epochs]
    clean, adversarial = 0.6 + 0.01 * epoch, 0.3 + 0.02 * seed + 0 * epoch
    if outcome == "CO-affected":
        adversarial = np.where(epoch < 10 + seed, adversarial, 0.0)
    if outcome == "did not converge":
        clean, adversarial = 0 * epoch + 0.1, 0 * epoch + 0.1
    found = pd.DataFrame({"epoch": epoch, "clean": clean, "adversarial": adversarial})
    return found.assign(series=series, seed=seed, outcome=outcome, xi_eval=16)


def five(seeds: int) -> pd.DataFrame:
    runs = {
        "C_20% (13 channels)": "did not converge",
        "C_3% (2 channels)": "CO-affected",
        "C_10% (6 channels)": "CO-affected",
        "C_1% (1 channel)": "stable",
        "no L_co": "stable",
    }
    return pd.concat([run(name, outcome, seed) for name, outcome in runs.items() for seed in range(seeds)])


def legend(figure: Figure) -> list[str]:
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()]


def lines(axis: Axes) -> dict[str, mpl.lines.Line2D]:
    return {str(line.get_label()): line for line in axis.lines}


def test_figure_5_shows_the_shares_in_order_and_how_each_ended() -> None:
    figure = fig05.draw(five(1), about="digits, n = 5")
    top, bottom = figure.axes
    assert legend(figure) == list(lines(top)) == list(lines(bottom)) == [
        r"no $L_\mathrm{co}$" + "\nstable",
        "$C_{1\\%}$ (1 channel)\nstable",
        "$C_{3\\%}$ (2 channels)\nCO-affected",
        "$C_{10\\%}$ (6 channels)\nCO-affected",
        "$C_{20\\%}$ (13 channels)\ndid not converge",
    ]  # fmt: skip
    drawn = lines(top)["$C_{10\\%}$ (6 channels)\nCO-affected"]
    np.testing.assert_array_equal(drawn.get_xdata(), EPOCHS)
    np.testing.assert_allclose(drawn.get_ydata(), np.where(EPOCHS < 10, 30.0, 0.0))
    clean = lines(bottom)["$C_{10\\%}$ (6 channels)\nCO-affected"]
    np.testing.assert_allclose(clean.get_ydata(), 60 + EPOCHS)
    assert (top.get_ylabel(), bottom.get_ylabel()) == ("PGD-10 accuracy (%)\nat ξ = 16/255", "clean (%)")
    assert bottom.get_xlabel() == "epoch" and figure.get_supxlabel() == "digits, n = 5"
    assert top.get_ylim() == pytest.approx((0, 33)) and bottom.get_ylim() == pytest.approx((0, 88))
    assert not top.collections and not bottom.collections, "a band needs several seeds"


def test_colours_and_marks_say_how_a_run_ended() -> None:
    top, bottom = fig05.draw(five(1)).axes
    for axis in (top, bottom):
        drawn = list(lines(axis).values())
        assert [to_hex(line.get_color()) for line in drawn] == [
            *shades(COLOURS["stable"], 2),
            *shades(COLOURS["CO-affected"], 2),
            COLOURS["did not converge"],
        ]
        assert [line.get_marker() for line in drawn] == ["o", "o", "X", "X", "s"]
        assert all(line.get_markevery() == [-1] for line in drawn), "the mark stands at the end"


def test_several_seeds_give_their_mean_and_range() -> None:
    figure = fig06.draw(pd.concat([run("C_10% by T_act", "stable", seed) for seed in range(3)]))
    top, bottom = figure.axes
    (line,) = top.lines
    np.testing.assert_allclose(line.get_ydata(), 32)
    (band,) = top.collections
    corners = band.get_paths()[0].vertices
    assert corners[:, 1].min() == pytest.approx(30) and corners[:, 1].max() == pytest.approx(34)
    assert set(corners[:, 0]) == set(EPOCHS)
    assert len(bottom.collections) == 1


def test_seeds_that_end_differently_are_counted() -> None:
    curves = pd.concat([run("x", "stable", 0), run("x", "CO-affected", 1), run("x", "CO-affected", 2)])
    figure = fig06.draw(curves)
    assert legend(figure) == ["x\nCO-affected in 2 of 3 seeds"]
    assert to_hex(figure.axes[0].lines[0].get_color()).upper() == COLOURS["CO-affected"]


def test_a_run_that_stopped_early_ends_early() -> None:
    figure = fig06.draw(pd.concat([run("x", "did not converge", epochs=4), run("y", "stable")]))
    assert [line.get_xdata()[-1] for line in figure.axes[0].lines] == [4, 20]


def test_figure_6_keeps_the_order_and_asks_its_own_question() -> None:
    curves = pd.concat([run("10 % by variance", "did not converge"), run("C_10% by T_act", "CO-affected")])
    six, five_ = fig06.draw(curves), fig05.draw(curves)
    by_variance = "10 % by variance\ndid not converge"
    by_difference = r"$C_{10\%}$ by $T_\mathrm{act}$" + "\nCO-affected"
    assert legend(six) == [by_variance, by_difference]
    assert six.axes[0].get_title("left") != five_.axes[0].get_title("left")
    assert six.legends[0].get_title().get_text() == "channels chosen by"


@pytest.mark.parametrize("name", ["_hidden $x_1$ and $", "A" * 60, "C_10% of the channels, by T_act, as printed"])
@pytest.mark.filterwarnings("error")
def test_nothing_overlaps(name: str) -> None:
    curves = pd.concat([five(3), run(name, "did not converge")])
    figure = fig05.draw(curves, about="ResNet-18 (width 16), CIFAR-10, 2 000 test images, seeds 0–2")
    assert overlaps(figure) == []
    assert len(legend(figure)) == 6
    box = figure.legends[0].get_window_extent()
    assert all(not box.overlaps(axis.get_window_extent()) for axis in figure.axes), "the legend covers data"
    assert box.x1 <= figure.bbox.x1 + 1


@pytest.mark.parametrize("draw", [fig05.draw, fig06.draw])
def test_the_frame_and_the_settings_are_left_alone(draw: object) -> None:
    frame = five(2)
    copy, before = frame.copy(), dict(mpl.rcParams)
    draw(frame).canvas.draw()  # type: ignore[operator]
    assert dict(mpl.rcParams) == before
    pd.testing.assert_frame_equal(frame, copy)


def test_shades() -> None:
    assert [colour.upper() for colour in shades("#0072B2", 1)] == ["#0072B2"]
    for count in (2, 5, 10):
        light = [mpl.colors.to_rgb(colour) for colour in shades("#0072B2", count)]
        assert len(set(light)) == count and [sum(c) for c in light] == sorted((sum(c) for c in light), reverse=True)
