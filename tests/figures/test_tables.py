"""Tables as text: cells and sentences by hand, what breaks Markdown and LaTeX, and the files."""

from __future__ import annotations

import re
from math import nan
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from coprobe.figures import tables
from coprobe.figures.tables import latex, markdown, save_table

ABOUT = ["n = 60 & seed 0."]


def line(method: str, metric: str, ours: float, paper: float = nan, **changes: object) -> dict[str, object]:
    """A row of the long frame; intervals reach 10 points down and 6 up."""
    labels = {"clean": "clean", "cw": "C&W", "co": "CO", "minutes": "minutes"}
    row = {
        "dataset": "CIFAR-10", "method": method, "xi_train": 12.0, "xi_here": 42.0, "xi_eval": 16.0, "node": None,
        "alpha3": nan, "noise": "none", "metric": metric, "label": labels[metric], "run": method, "which": "last",
        "main": True, "ours": ours, "low": ours - 10, "high": ours + 6, "n": 60.0, "seeds": 1, "paper": paper,
    }  # fmt: skip
    return {**row, **changes}


def frame(*lines: dict[str, object]) -> pd.DataFrame:
    table = pd.DataFrame(lines)
    return table.assign(difference=table["ours"] - table["paper"])


@pytest.fixture
def table() -> pd.DataFrame:
    other = {"which": "best", "main": False}
    return frame(
        line("one", "clean", 61.24, 64.92),
        line("one", "cw", 20.0, 20.04),
        line("one", "clean", 50.0, **other),
        line("two", "clean", nan, 70.0, node="B", alpha3=200.0),
        line("two", "cw", 3.04, node="B", alpha3=200.0),
    )


EXPECTED_MARKDOWN = """\
# Title

| method | node | α3 | clean | C&W |
|---|---|---|---:|---:|
| one | – | – | 61.2 (64.9, −3.7) | 20.0 (20.0, 0.0) |
| ↳ best |  |  | 50.0 |  |
| two | B | 200 | – (70.0) | 3.0 |

- All rows: data CIFAR-10, ξ_T 12, ξ_E 16, noise none.
- Cells: ours (the paper's, ours − the paper's); accuracies in percent; – is not measured.
- 95 % Wilson intervals of ours are ±8.0 points or less; each is in the CSV file.
- A line with ↳ is the other checkpoint (best or last) of the run above it, where it differs.
- n = 60 & seed 0.
"""

EXPECTED_ROWS = r"""
method & node & $\alpha_3$ & clean & C\&W \\
\midrule
one & -- & -- & \shortstack[r]{61.2\\{\tiny (64.9, $-$3.7)}} & \shortstack[r]{20.0\\{\tiny (20.0, 0.0)}} \\[2pt]
$\hookrightarrow$ best &  &  & 50.0 &  \\[2pt]
two & B & 200 & \shortstack[r]{--\\{\tiny (70.0)}} & 3.0 \\[2pt]
\bottomrule
"""


def test_markdown(table: pd.DataFrame) -> None:
    assert markdown(table, "Title", ABOUT) == EXPECTED_MARKDOWN


def test_latex(table: pd.DataFrame) -> None:
    text = latex(table, "Table 3. C&W at 100 %", ABOUT)
    assert EXPECTED_ROWS in text
    assert r"\caption{C\&W at 100 \%}" in text and r"\begin{tabular}{lllrr}" in text
    assert r"All rows: data CIFAR-10, $\xi_T$ 12, $\xi_E$ 16, noise none." in text and r"n = 60 \& seed 0." in text


def test_latex_is_well_formed(table: pd.DataFrame) -> None:
    text = latex(table.assign(method="a_b{c}#1~^\\"), "50 % of $x$ ± 1 × ε", ["ξ ≤ α … L_stable at ξ_T", r"\input{x}"])
    assert text.isascii(), "a sign that LaTeX may not know"
    bare = re.sub(r"\\\\|\\[{}$&%#_]", "", text)
    assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
    opened, closed = (re.findall(rf"\\{what}{{(\w+\*?)}}", bare) for what in ("begin", "end"))
    assert opened == ["table*", "tabular", "minipage"] and sorted(opened) == sorted(closed)
    rows = bare.split(r"\toprule")[1].split(r"\bottomrule")[0].splitlines()
    assert {row.count("&") for row in rows if row and row != r"\midrule"} == {3}
    assert r"\textbackslash{}input\{x\}" in text and r"a\_b\{c\}\#1\textasciitilde{}\textasciicircum{}" in text


def test_marks_and_minutes_have_no_difference() -> None:
    nothing = {"low": nan, "high": nan}
    text = markdown(
        frame(
            line("one", "co", 1.0, 0.0, **nothing),
            line("one", "minutes", 3.04, 92.0, **nothing),
            line("two", "co", -1.0, -1.0, **nothing),
            line("two", "minutes", nan, 92.0, **nothing),
            line("three", "co", 0.0, **nothing),
        ),
        "t",
    )
    assert "| one | yes (no) | 3.0 (92.0) |" in text
    assert "| two | not converged (not converged) | – (92.0) |" in text
    assert "| three | no | – |" in text
    assert "Wilson" not in text and "↳" not in text


@pytest.mark.parametrize(("other", "shown"), [(61.25, False), (61.31, True), (nan, False)])
def test_the_other_checkpoint_is_shown_where_it_is_seen_to_differ(other: float, shown: bool) -> None:
    text = markdown(
        frame(line("one", "clean", 61.24), line("one", "clean", other, main=False), line("two", "clean", 1.0)), "t"
    )
    assert ("↳ last" in text) == shown == ("A line with ↳" in text)


def test_the_interval_over_seeds(table: pd.DataFrame) -> None:
    assert "Standard deviations over the seeds are ±8.0 points or less" in markdown(table.assign(seeds=3), "t")


def test_bars_do_not_break_a_row() -> None:
    assert r"| a\|b | 1.0 |" in markdown(frame(line("a|b", "clean", 1.0), line("c", "clean", 2.0)), "t")


def test_files(table: pd.DataFrame, tmp_path: Path) -> None:
    paths = save_table(table, tmp_path / "new", "tab1", "Title", ABOUT)
    assert [path.name for path in paths] == ["tab1.md", "tab1.tex", "tab1.csv"]
    assert paths[0].read_text(encoding="utf-8") == EXPECTED_MARKDOWN
    assert paths[1].read_text(encoding="utf-8") == latex(table, "Title", ABOUT)
    again = pd.read_csv(paths[2], keep_default_na=False, na_values=[""])
    assert list(again.columns) == list(table.columns)
    np.testing.assert_array_equal(again["ours"], table["ours"])
    assert markdown(again, "Title", ABOUT) == EXPECTED_MARKDOWN, "the CSV holds all that the table shows"


def test_a_failed_write_leaves_the_old_files(
    table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_table(table, tmp_path, "tab1", "Title")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(self: Path, text: str, **_: object) -> None:
        self.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(tables.Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        save_table(table, tmp_path, "tab1", "Other title")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
