"""Tables as text: Markdown and LaTeX from the long frame of `coprobe.paper.tables`, ours beside the paper's."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coprobe.core.files import atomic

if TYPE_CHECKING:
    import pandas as pd

#: Columns that name a row, as people read them.
_KEYS = {
    "dataset": "data", "method": "method", "xi_train": "ξ_T", "xi_eval": "ξ_E", "node": "node", "alpha3": "α3",
    "noise": "noise",
}  # fmt: skip
_CO = {1.0: "yes", 0.0: "no", -1.0: "not converged"}
_NOTHING = "–"
#: Differences below this are not seen at one decimal.
_SEEN = 0.05

#: What LaTeX needs in the place of a sign or name, longer ones first.
_LATEX = {
    "L_stable": r"$L_{\mathrm{stable}}$", "ξ_T": r"$\xi_T$", "ξ_E": r"$\xi_E$", "α3": r"$\alpha_3$", "ξ": r"$\xi$",
    "α": r"$\alpha$", "ε": r"$\varepsilon$", "−": "$-$", "±": r"$\pm$", "×": r"$\times$", "≤": r"$\leq$", "–": "--",
    "…": r"\dots{}", "↳": r"$\hookrightarrow$", "\\": r"\textbackslash{}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip
_TO_ESCAPE = re.compile("|".join(map(re.escape, _LATEX)))


@dataclass(frozen=True)
class _Cell:
    """What stands in a cell: ours, and in brackets the paper's and the difference, if it has one."""

    ours: str
    paper: str = ""


@dataclass(frozen=True)
class _Grid:
    """A table as text: headings of the keys, headings of the metrics, lines, and the sentences below it."""

    keys: list[str]
    metrics: list[str]
    lines: list[tuple[list[str], list[_Cell]]]
    foot: list[str]


def markdown(frame: pd.DataFrame, title: str, about: Sequence[str] = ()) -> str:
    """The table for people to read in a browser or terminal: cells are "ours (paper, difference)".

    Args:
        frame: long, as `coprobe.paper.tables.content` returns it.
        title: stands above it.
        about: sentences that stand below it.
    """
    grid = _grid(frame, about)

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    rule = "|" + "---|" * len(grid.keys) + "---:|" * len(grid.metrics)
    body = [line([*keys, *(f"{cell.ours} {cell.paper}".strip() for cell in cells)]) for keys, cells in grid.lines]
    foot = [f"- {sentence}" for sentence in grid.foot]
    return "\n".join([f"# {title}", "", line([*grid.keys, *grid.metrics]), rule, *body, "", *foot, ""])


def latex(frame: pd.DataFrame, title: str, about: Sequence[str] = ()) -> str:
    r"""The table for a paper that uses the package booktabs: what the paper has stands small below ours.

    Takes what `markdown` takes. It is a `table*`, which spans both columns of a two-column page.
    """
    grid = _grid(frame, about)

    body = [" & ".join([*map(_escaped, keys), *map(_stacked, cells)]) + r" \\[2pt]" for keys, cells in grid.lines]
    head = " & ".join(map(_escaped, (*grid.keys, *grid.metrics))) + r" \\"
    columns = "l" * len(grid.keys) + "r" * len(grid.metrics)
    unnumbered = re.sub(r"^Table \d+\. ", "", title)  # \caption counts by itself
    return "\n".join(
        [
            r"\begin{table*}", r"\centering", rf"\caption{{{_escaped(unnumbered)}}}", r"\footnotesize",
            r"\setlength{\tabcolsep}{4pt}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body,
            r"\bottomrule", r"\end{tabular}", r"\par\smallskip", r"\begin{minipage}{\linewidth}\scriptsize",
            *(_escaped(sentence) for sentence in grid.foot), r"\end{minipage}", r"\end{table*}", "",
        ]
    )  # fmt: skip


def save_table(frame: pd.DataFrame, directory: Path, name: str, title: str, about: Sequence[str] = ()) -> list[Path]:
    """Write `name`.md, `name`.tex and, the frame as it is, `name`.csv; returns the paths."""
    texts = {
        ".md": markdown(frame, title, about),
        ".tex": latex(frame, title, about),
        ".csv": frame.to_csv(index=False, lineterminator="\n"),
    }
    paths = [directory / f"{name}{suffix}" for suffix in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        with atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
    return paths


def _grid(frame: pd.DataFrame, about: Sequence[str]) -> _Grid:
    said = {key: frame[key].nunique(dropna=False) > 1 for key in _KEYS}
    keys = [key for key in _KEYS if said[key]]
    metrics = list(dict.fromkeys(frame["metric"]))
    labels = dict(zip(frame["metric"], frame["label"], strict=True))
    lines = []
    for _, rows in frame.groupby(list(_KEYS), sort=False, dropna=False):
        shown = rows[rows["main"]].set_index("metric")
        lines.append(([_key(rows[key].iloc[0]) for key in keys], _cells(shown, metrics)))
        other = rows[~rows["main"]].set_index("metric")
        if _differ(shown, other):
            name = f"↳ {other['which'].iloc[0]}"
            lines.append(([name, *[""] * (len(keys) - 1)], _cells(other, metrics, blank="")))
    fixed = [f"{_KEYS[key]} {_key(frame[key].iloc[0])}" for key in _KEYS if not said[key]]
    foot = _reading(frame, [name for name in fixed if not name.endswith(_NOTHING)], any("↳" in k[0] for k, _ in lines))
    return _Grid([_KEYS[key] for key in keys], [labels[metric] for metric in metrics], lines, [*foot, *about])


def _reading(frame: pd.DataFrame, fixed: list[str], others: bool) -> list[str]:
    """How the table is read: what holds for all of it, what a cell is, how far ours can be trusted."""
    foot = [f"All rows: {', '.join(fixed)}."] if fixed else []
    foot.append(f"Cells: ours (the paper's, ours − the paper's); accuracies in percent; {_NOTHING} is not measured.")
    half = float(((frame["high"] - frame["low"]) / 2).max())
    if not isnan(half):
        several = frame["seeds"].max() > 1
        what = "Standard deviations over the seeds" if several else "95 % Wilson intervals of ours"
        foot.append(f"{what} are ±{half:.1f} points or less; each is in the CSV file.")
    if others:
        foot.append("A line with ↳ is the other checkpoint (best or last) of the run above it, where it differs.")
    return foot


def _differ(shown: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Whether the other checkpoint has an accuracy that is seen to differ from the one shown."""
    return bool(((other["ours"] - shown["ours"].reindex(other.index)).abs() >= _SEEN).any())


def _cells(rows: pd.DataFrame, metrics: Sequence[str], blank: str = _NOTHING) -> list[_Cell]:
    return [_cell(metric, rows.loc[metric]) if metric in rows.index else _Cell(blank) for metric in metrics]


def _cell(metric: str, row: pd.Series[Any]) -> _Cell:
    write: Callable[[float], str] = _CO.__getitem__ if metric == "co" else "{:.1f}".format
    ours = _NOTHING if isnan(row["ours"]) else write(row["ours"])
    if isnan(row["paper"]):
        return _Cell(ours)
    paper = write(row["paper"])
    # minutes of two machines, or marks, have no difference worth a look
    if metric in ("co", "minutes") or ours == _NOTHING:
        return _Cell(ours, f"({paper})")
    return _Cell(ours, f"({paper}, {_signed(row['difference'])})")


def _signed(difference: float) -> str:
    text = f"{difference:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def _key(value: str | float | None) -> str:
    if isinstance(value, str):
        return value
    return _NOTHING if value is None or isnan(value) else f"{value:g}"


def _stacked(cell: _Cell) -> str:
    if not cell.paper:
        return _escaped(cell.ours)
    return rf"\shortstack[r]{{{_escaped(cell.ours)}\\{{\tiny {_escaped(cell.paper)}}}}}"


def _escaped(text: str) -> str:
    return _TO_ESCAPE.sub(lambda found: _LATEX[found[0]], text)
