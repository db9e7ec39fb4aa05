"""Figures on disk: formats, metadata, repeatability, atomicity, and the CSV beside them."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
from PIL import Image

from coprobe._version import __version__
from coprobe.errors import InputError
from coprobe.figures import fig04
from coprobe.figures.style import new_figure, plain, save, save_all, wrapped

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
    ("text", "shown"), [("a$b", r"a\$b"), ("_x", "\u200b_x"), ("a\tb\x07", "a?b?"), ("µ α", "µ α"), ("", "")]
)
def test_plain(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_wrapped() -> None:
    assert wrapped("short", 3.4) == "short"
    lines = wrapped("word " * 100, 2).split("\n")
    assert len(lines) == 3 and lines[-1].endswith("…") and max(map(len, lines)) <= 32
