"""Figures on disk: formats, metadata, repeatability, atomicity, and the CSV beside them."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import pandas as pd
import pytest
from PIL import Image

from coprobe._version import __version__
from coprobe.core.text import storable
from coprobe.errors import InputError
from coprobe.figures import fig01, fig04
from coprobe.figures.style import PLOT_SUFFIXES, new_figure, plain, save, save_all, wrapped
from tests.nasty import NASTY

ABOUT = {"data": "digits", "seed": 0, "epsilon": "ε = 16/255"}
DESCRIBED = "data: digits; seed: 0; epsilon: ε = 16/255"


def test_png(accuracies: pd.DataFrame, tmp_path: Path) -> None:
    figure = fig04.draw(accuracies)
    save(figure, tmp_path / "f.png", ABOUT)
    with Image.open(tmp_path / "f.png") as image:
        assert image.info["Description"] == DESCRIBED and image.info["Software"] == f"coprobe {__version__}"
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
        assert image.size == tuple((200 * figure.get_size_inches()).astype(int))


def test_pdf(accuracies: pd.DataFrame, tmp_path: Path) -> None:
    save(fig04.draw(accuracies), tmp_path / "f.pdf", {"data": "digits"})
    content = (tmp_path / "f.pdf").read_bytes()
    assert b"/Subject (data: digits)" in content and f"coprobe {__version__}".encode() in content
    assert b"/Type3" not in content and b"/FontType 3" not in content, "journals refuse Type 3 fonts"


def test_svg(accuracies: pd.DataFrame, tmp_path: Path) -> None:
    save(fig04.draw(accuracies), tmp_path / "f.svg", ABOUT)
    content = (tmp_path / "f.svg").read_text(encoding="utf-8")
    assert DESCRIBED in content and f"coprobe {__version__}" in content


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_the_same_numbers_give_the_same_file(accuracies: pd.DataFrame, tmp_path: Path, suffix: str) -> None:
    for name in ("one", "two"):
        save(fig04.draw(accuracies), tmp_path / f"{name}.{suffix}", ABOUT)
    assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()
    if suffix == "svg":
        assert "<dc:date>" not in (tmp_path / "one.svg").read_text(encoding="utf-8")


def test_a_failed_write_leaves_the_old_file(
    accuracies: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = fig04.draw(accuracies)
    path = tmp_path / "f.png"
    save(figure, path)
    old = path.read_bytes()

    def fail(target: Path, **_: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        save(figure, path)
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["f.png"]


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.png.*\.pdf.*\.svg"):
        save(new_figure(1, 1), tmp_path / "f.jpg")
    assert not list(tmp_path.iterdir())


def test_settings_of_the_caller_are_left_alone(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    save(new_figure(1, 1), tmp_path / "f.svg")
    assert dict(mpl.rcParams) == before


def test_csv_holds_what_is_drawn(accuracies: pd.DataFrame, tmp_path: Path) -> None:
    paths = save_all(fig04.draw(accuracies), accuracies, tmp_path / "new", "fig04", ABOUT)
    assert [path.name for path in paths] == ["fig04.png", "fig04.pdf", "fig04.csv"]
    pd.testing.assert_frame_equal(pd.read_csv(paths[2], keep_default_na=False), accuracies, check_dtype=False)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a$b", r"a\$b"), ("_x", "\u200b_x"), ("a\tb\x07\n", r"a\tb\x07\n"), ("µ α", "µ α"), ("", ""),
        ("x" * 300, "x" * 199 + "…"), ("$" * 300, r"\$" * 199 + "…"),
    ],
)  # fmt: skip
def test_plain(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_wrapped() -> None:
    assert wrapped("short", 3.4) == "short"
    for text in ("word " * 100, "x" * 100_000, "a\nb" * 1000):
        lines = wrapped(text, 2).split("\n")
        assert len(lines) == 3 and lines[-1].endswith("…") and max(map(len, lines)) <= 32


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["svg", "pdf", "png"])
def test_any_names_give_a_valid_file_that_shows_them(
    accuracies: pd.DataFrame, histories: pd.DataFrame, tmp_path: Path, suffix: str
) -> None:
    """Every nasty name as the mask of a bar, a few as runs, all of them in the metadata."""
    bars = pd.concat([accuracies[:1].assign(mask=storable(name)) for name in NASTY])
    figure = fig04.draw(bars, about=" ".join(NASTY))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing|constrained_layout not applied")
        save(figure, tmp_path / f"bars.{suffix}", {name: name for name in NASTY})
        for name in (r"$\frac{$", "_a\x1b[31m", "x" * 100_000):
            odd = histories.assign(run=name).rename(columns={"v_act_A": f"v_act_{name.replace('_', '')}"})
            save(fig01.draw(odd, about=name), tmp_path / f"lines.{suffix}")
    (axis,) = figure.axes
    found = axis.get_legend()
    assert found is not None
    assert [text.get_text() for text in found.get_texts()] == [f"{plain(storable(name))} (0)" for name in NASTY]
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        if suffix == "svg":
            root = ElementTree.fromstring(content)
            assert not {element.tag.rpartition("}")[2] for element in root.iter()} & {"script", "b", "a"}
        elif suffix == "pdf":
            assert content.startswith(b"%PDF") and content.rstrip().endswith(b"%%EOF")
        else:
            with Image.open(path) as image:
                assert image.info["Software"].startswith("coprobe")
                image.load()


def test_csv_holds_names_that_no_file_can_hold(tmp_path: Path) -> None:
    frame = pd.DataFrame({"run": pd.Series(["a\udcff", "b"], dtype=object)})
    save_all(new_figure(1, 1), frame, tmp_path, "fig", {"run": "a\udcff"})
    assert (tmp_path / "fig.csv").read_text(encoding="utf-8") == "run\na\\udcff\nb\n"


def test_figures_have_the_permissions_that_the_person_wants(tmp_path: Path) -> None:
    umask = 0o027  # neither the usual one nor that of a temporary file
    before = os.umask(umask)
    try:
        for suffix in PLOT_SUFFIXES:
            save(new_figure(1, 1), tmp_path / f"f{suffix}")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~umask}
