"""Fig. 10: increments of every channel at every step of PGD."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from coprobe.figures import fig10
from coprobe.figures.style import COLOURS, shades
from tests.figures.test_drawn import NAMES, overlaps

CHANNELS, STEPS = 20, 10


def model(name: str, kind: str, last: np.ndarray, nodes: str = "AB") -> pd.DataFrame:
    """Increments that grow evenly up to `last`, channels out of order."""
    rows = [
        (name, kind, node, channel, step, last[channel] * step / STEPS, last[channel] / STEPS)
        for node in nodes
        for channel in reversed(range(len(last)))
        for step in range(1, STEPS + 1)
    ]
    return pd.DataFrame(rows, columns=["model", "kind", "node", "channel", "step", "s", "s_step"])


def few() -> np.ndarray:
    last = np.ones(CHANNELS)
    last[[3, 11]] = 400, 582
    return last


@pytest.fixture
def increments() -> pd.DataFrame:
    even = np.linspace(1500, 1600, CHANNELS)
    return pd.concat([model("bad", "CO-affected", few()), model("noisy", "noise-trained", even)], ignore_index=True)


def panels(figure: mpl.figure.Figure) -> list[Axes]:
    return figure.axes[:-1]  # the last one is the colour bar


def share(axis: Axes) -> str:
    (text,) = axis.texts
    return text.get_text()


def test_a_panel_per_model_and_node_with_a_series_per_step(increments: pd.DataFrame) -> None:
    figure = fig10.draw(increments, about="digits")
    shown = panels(figure)
    assert len(shown) == 4
    for axis, (node, name) in zip(shown, [("A", "bad"), ("A", "noisy"), ("B", "bad"), ("B", "noisy")], strict=True):
        rows = increments[(increments["model"] == name) & (increments["node"] == node)]
        assert len(axis.lines) == STEPS
        colour = COLOURS[rows["kind"].iloc[0]]
        for step, (line, shade) in enumerate(zip(axis.lines, shades(colour, STEPS), strict=True), start=1):
            wanted = rows[rows["step"] == step].sort_values("channel")
            assert list(line.get_xdata()) == list(range(CHANNELS)) and to_hex(line.get_color()) == shade
            np.testing.assert_allclose(line.get_ydata(), wanted["s"])
    first, second, third, fourth = shown
    assert [axis.get_title() for axis in shown] == ["bad", "noisy", "", ""]
    assert first.title.get_color() == COLOURS["CO-affected"] and second.title.get_color() == COLOURS["noise-trained"]
    assert (first.get_ylabel(), third.get_ylabel()) == ("$S_k$ at A", "$S_k$ at B")
    assert [axis.get_xlabel() for axis in shown] == ["", "", "channel", "channel"]
    assert first.get_ylim() == second.get_ylim() and third.get_ylim() == fourth.get_ylim()
    assert first.get_ylim()[0] == 0 and first.get_ylim()[1] > 1600
    assert figure.get_supxlabel() == "digits"


def test_the_share_of_the_top_channels_stands_in_each_panel(increments: pd.DataFrame) -> None:
    shown = panels(fig10.draw(increments))
    # Two of 20 channels: 982 of 1000, and 1600 + 1594.7 of 31000.
    assert share(shown[0]) == "top 10% of channels: 98% of sum"
    assert share(shown[1]) == "top 10% of channels: 10% of sum"


@pytest.mark.parametrize(
    ("values", "expected"), [([1.0] * 10, 0.1), ([1.0, 3.0], 0.75), ([0.0] * 19 + [5.0], 1.0), ([0.0, 0.0], np.nan)]
)
def test_share_of_top(values: list[float], expected: float) -> None:
    assert fig10.share_of_top(np.array(values)) == pytest.approx(expected, nan_ok=True)


def test_the_axis_is_logarithmic_only_for_wide_ranges(increments: pd.DataFrame) -> None:
    assert {axis.get_yscale() for axis in panels(fig10.draw(increments))} == {"symlog"}
    even = model("noisy", "noise-trained", np.full(CHANNELS, 5.0))
    (axis,) = panels(fig10.draw(even[even["node"] == "A"]))
    assert axis.get_yscale() == "linear" and axis.get_ylim() == pytest.approx((0, 5.25))


def test_between_steps(increments: pd.DataFrame) -> None:
    axis = panels(fig10.draw(increments, between=True))[0]
    np.testing.assert_allclose(axis.lines[4].get_ydata(), few() / STEPS)
    assert axis.get_ylabel() == "$S_k$ at A per step"


def test_a_model_that_nothing_moves_says_so() -> None:
    (axis,) = panels(fig10.draw(model("dead", "clean-trained", np.zeros(CHANNELS), nodes="A")))
    assert share(axis) == "no increments" and axis.get_ylim() == pytest.approx((0, 1.05))


def test_the_key_names_the_first_and_last_step(increments: pd.DataFrame) -> None:
    figure = fig10.draw(increments)
    key = figure.axes[-1]
    figure.canvas.draw()
    assert key.get_ylabel() == "step of PGD"
    assert [tick.get_text() for tick in key.get_yticklabels() if tick.get_text()] == ["1", "10"]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("name", [*NAMES[-2:], "_$x_1$ on {x + δ0; x + δ + δ0}"])
@pytest.mark.filterwarnings("error")
def test_nothing_overlaps(name: str, count: int) -> None:
    parts = [model(f"{name}{'' if i == 0 else i}", "noise-trained", 1000 * few(), "A") for i in range(count)]
    figure = fig10.draw(pd.concat(parts), about="digits, n = 360, ε = 26/255, seed 0")
    assert overlaps(figure) == []
    letters = panels(figure)[0].get_title().replace("\n", "").replace(" ", "").replace(r"\$", "$").strip("\u200b…")
    assert letters and name.replace(" ", "").startswith(letters)


def test_the_frame_and_the_settings_are_left_alone(increments: pd.DataFrame) -> None:
    copy, before = increments.copy(), dict(mpl.rcParams)
    fig10.draw(increments).canvas.draw()
    assert dict(mpl.rcParams) == before
    pd.testing.assert_frame_equal(increments, copy)
