"""Figs. 2 and 7: the network with its nodes, and the two branches."""

from __future__ import annotations

from itertools import pairwise

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from coprobe.errors import InputError
from coprobe.figures import fig02, fig07
from coprobe.figures.style import COLOURS, NODE_COLOURS, PAGE
from coprobe.models import build
from coprobe.nodes import places
from tests.figures.test_drawn import overlaps


def table(depths: tuple[int, ...], relus: int = 2) -> pd.DataFrame:
    """Places of a residual network with that many blocks per stage, its nodes at the end of stem and stages."""
    rows = [("A", "relu", 0, 64, 32, 32)]
    for stage, depth in enumerate(depths, start=1):
        side, channels = 32 // 2 ** (stage - 1), 64 * 2 ** (stage - 1)
        paths = [f"layer{stage}.{block}.relu{relu + 1}" for block in range(depth) for relu in range(relus)]
        rows += [("", path, stage, channels, side, side) for path in paths]
        rows[-1] = ("ABCDE"[stage], *rows[-1][1:])
    return pd.DataFrame(rows, columns=["node", "path", "stage", "channels", "height", "width"])


def texts(figure: Figure, axis: int = 0) -> list[str]:
    return [text.get_text() for text in figure.axes[axis].texts if text.get_text()]


def bars(figure: Figure) -> list[Rectangle]:
    return [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]


def test_the_table_above_is_that_of_resnet18() -> None:
    found = places(build("resnet18", width=64), (3, 32, 32))
    ours = table((2, 2, 2, 2))
    assert [(p.letter, p.path, *p.shape) for p in found] == list(
        ours[["node", "path", "channels", "height", "width"]].itertuples(index=False, name=None)
    )


def test_figure_2_shows_every_place_in_order() -> None:
    figure = fig02.draw(table((2, 2, 2, 2)), about="resnet18")
    drawn = bars(figure)
    assert len(drawn) == 17 and figure.get_figwidth() == PAGE
    x = [bar.get_x() for bar in drawn]
    assert x == sorted(x) and all(b.get_x() > a.get_x() + a.get_width() for a, b in pairwise(drawn))
    # 4 is an eighth of 32; heights go with the square root.
    assert drawn[-1].get_height() / drawn[0].get_height() == pytest.approx(8**-0.5)
    shown = texts(figure)
    for text in ("image", "stem", "stage 1", "stage 4", "pooling", "classifier", "64×32×32", "128×16×16", "512×4×4"):
        assert text in shown
    assert figure.get_supxlabel() == "resnet18"


def test_figure_2_marks_the_nodes_at_their_places() -> None:
    frame = table((2, 2, 2, 2))
    figure = fig02.draw(frame)
    letters = {text.get_text(): text for text in figure.axes[0].texts if len(text.get_text()) == 1}
    assert list(letters) == list("ABCDE")
    for bar, node in zip(bars(figure), frame["node"], strict=True):
        if not node:
            assert to_hex(bar.get_facecolor()) not in {colour.lower() for colour in NODE_COLOURS}
            continue
        colour = NODE_COLOURS["ABCDE".index(node)].lower()
        assert to_hex(bar.get_facecolor()) == colour
        box = letters[node].get_bbox_patch()
        assert box is not None and to_hex(box.get_facecolor()) == colour
        assert letters[node].get_position()[0] == pytest.approx(bar.get_x() + bar.get_width() / 2)
    assert "layer3.1\n.relu2" in texts(figure)


@pytest.mark.parametrize(
    ("depths", "relus", "blocks"),
    [((1,), 2, 1), ((2, 3), 2, 5), ((1, 1, 1, 1), 2, 4), ((2, 2, 2, 2), 2, 8), ((3, 4, 6, 3), 3, 16)],
)
def test_other_depths(depths: tuple[int, ...], relus: int, blocks: int) -> None:
    figure = fig02.draw(table(depths, relus), about="a network, images of 32×32 pixels")
    assert overlaps(figure) == []
    frames = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyBboxPatch)]
    assert len(frames) == 1 + blocks + 3  # the stem; image, pooling and classifier
    ends = sorted((frame.get_x(), frame.get_x() + frame.get_width()) for frame in frames)
    assert all(left[1] < right[0] for left, right in pairwise(ends)), "blocks cover each other"
    assert ends[0][0] > 0 and ends[-1][1] < PAGE


def test_without_stem_or_nodes() -> None:
    frame = table((2, 2)).assign(node="").iloc[1:]
    figure = fig02.draw(frame)
    assert "stem" not in texts(figure) and len(bars(figure)) == 8


def test_figure_7_says_what_happens_to_the_branches() -> None:
    content = fig07.arrows().set_index(["panel", "start", "end"])["strength"]
    assert content["a", "b_adv", "f"] == "strong" and content["a", "b_data", "f"] == "weak"
    assert content["b", "b_adv", "f"] == "weak" and content["b", "b_data", "f"] == "strong"
    figure = fig07.draw(fig07.arrows(), about="schematic")
    first, second = figure.axes
    assert first.get_title().startswith("(a)") and second.get_title().startswith("(b)")
    assert "wrong\nclass" in texts(figure) and "right\nclass" in texts(figure, 1)
    noise = "noise\n" + r"$\delta_R$"
    assert noise not in texts(figure) and noise in texts(figure, 1)
    assert figure.get_supxlabel() == "schematic" and overlaps(figure) == []


def test_arrows_of_figure_7() -> None:
    content = fig07.arrows()
    figure = fig07.draw(content)
    for axis, panel in zip(figure.axes, "ab", strict=True):
        rows = content[content["panel"] == panel].to_dict("records")
        drawn = [patch for patch in axis.patches if isinstance(patch, FancyArrowPatch)]
        assert len(drawn) == len(rows)
        for arrow, row in zip(drawn, rows, strict=True):
            assert (arrow.get_linewidth() < 1) == (row["strength"] == "weak")
            assert (arrow.get_linestyle() not in ("solid", "-")) == (row["strength"] == "weak")
            ends = {row["start"], row["end"]}
            if "b_data" in ends:
                assert to_hex(arrow.get_edgecolor()).upper() == COLOURS["stable"]
            if "b_adv" in ends:
                assert to_hex(arrow.get_edgecolor()).upper() == COLOURS["CO-affected"]
        assert set(content.loc[content["panel"] == panel, "label"]) - {""} <= {t.get_text() for t in axis.texts}


def test_channels_of_f_are_covered_only_by_a_strong_attack() -> None:
    def raised(figure: Figure) -> list[int]:
        colours = [[to_hex(p.get_facecolor()).upper() for p in axis.containers[0]] for axis in figure.axes]
        return [panel.count(COLOURS["CO-affected"]) for panel in colours]

    content = fig07.arrows()
    assert raised(fig07.draw(content)) == [2, 0]
    assert raised(fig07.draw(content.replace({"panel": {"a": "b", "b": "a"}}))) == [0, 2]


def test_an_unknown_place_is_refused() -> None:
    with pytest.raises(InputError, match="b_date"):
        fig07.draw(fig07.arrows().replace("b_data", "b_date"))


@pytest.mark.parametrize("draw", [fig02.draw, fig07.draw])
def test_the_frame_and_the_settings_are_left_alone(draw: object) -> None:
    frame = fig07.arrows() if draw is fig07.draw else table((2, 2))
    copy, before = frame.copy(), dict(mpl.rcParams)
    draw(frame).canvas.draw()  # type: ignore[operator]
    assert dict(mpl.rcParams) == before
    pd.testing.assert_frame_equal(frame, copy)
