"""Writes the tables of README.md from the registries and from result files: `make readme`. A test compares them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from coprobe.attacks import ATTACKS
from coprobe.cli import COMMANDS
from coprobe.core.registry import Registry
from coprobe.data import DATASETS
from coprobe.masking import SELECTORS
from coprobe.metrics import METRICS
from coprobe.models import ARCHITECTURES
from coprobe.paper.claims import VERDICTS
from coprobe.paper.figures import FIGURES
from coprobe.training import METHODS
from coprobe.verdict.signs import listed

README = Path(__file__).resolve().parents[1] / "README.md"
DRAWN = README.parent / "figures"
PAIR = DRAWN / "pair"
RESULTS = README.parent / "benchmarks" / "results"


def table(registry: Registry) -> str:
    """Name, summary and source of everything in a registry."""
    rows = []
    for entry in registry.entries():
        name = f"{entry.name}:{entry.facts['argument']}" if "argument" in entry.facts else entry.name
        rows.append(f"| `{name}` | {entry.summary} | {entry.source} |")
    return "\n".join(["| name | what it is | source |", "|---|---|---|", *rows])


def methods() -> str:
    """Every training method with its cost, and what it gave at a small scale (benchmarks/methods.py)."""
    measured = pd.read_csv(RESULTS / "methods.csv").set_index("method")
    columns = ["clean", "fgsm", "pgd10"]
    rows = []
    for entry in METHODS.entries():
        cells = (
            [f"{100 * value:.1f}" for value in measured.loc[entry.name, columns]]
            if entry.name in measured.index
            else ["", "", ""]
        )
        cells = [f"`{entry.name}`", entry.summary, entry.source, f"{entry.facts['cost']:g}", *cells]
        rows.append(f"| {' | '.join(cells)} |")
    header = "| name | what it is | source | cost | clean | FGSM | PGD-10 |"
    return "\n".join([header, "|---|---|---|--:|--:|--:|--:|", *rows])


def signs() -> str:
    """Every sign with its number in the literature's table, its source and its cost."""
    rows = [
        f"| {entry.facts['number']} | `{entry.name}` | {entry.summary} | {entry.source} | {entry.facts['cost']} |"
        for entry in listed()
    ]
    return "\n".join(["| | name | what it is | source | cost per image |", "|--:|---|---|---|---|", *rows])


def commands() -> str:
    """Every command and what it is for."""
    rows = [f"| `coprobe {name}` | {purpose} |" for name, purpose in COMMANDS.items()]
    return "\n".join(["| command | does |", "|---|---|", *rows])


def accuracies() -> str:
    """Accuracy of both models of the pair under every attack, from the file that `coprobe evaluate` wrote."""
    frame = pd.read_csv(PAIR / "evaluation.csv")
    wide = (100 * frame.pivot_table("accuracy", "model", "attack", sort=False)).round(1)
    return markdown(wide.rename(index=lambda path: f"`{path}`"), "model")


def masks() -> str:
    """Accuracy of the CO-affected one of the pair by mask, from the numbers of its Fig. 4."""
    frame = pd.read_csv(PAIR / "fig04.csv", keep_default_na=False)
    frame["masked channels of A"] = frame["mask"] + " (" + frame["masked"].astype(str) + ")"
    wide = (100 * frame.pivot_table("accuracy", "masked channels of A", "attack", sort=False)).round(1)
    return markdown(wide, "masked channels of A")


def markdown(frame: pd.DataFrame, corner: str) -> str:
    """A Markdown table with the index as its first column."""
    lines = [f"| {corner} | {' | '.join(frame.columns)} |", "|---|" + "--:|" * frame.shape[1]]
    lines += [
        f"| {name} | {' | '.join(map(str, row))} |" for name, row in zip(frame.index, frame.to_numpy(), strict=True)
    ]
    return "\n".join(lines)


def claims() -> str:
    """How many claims have each verdict, by scale, from the files that `coprobe paper` wrote."""
    scales = ["demo", "small", "paper"]
    counts = {}
    for scale in scales:
        path = DRAWN / scale / "claims.csv"
        counts[scale] = pd.read_csv(path)["verdict"].value_counts() if path.exists() else {}
    lines = ["| scale | " + " | ".join(VERDICTS) + " |", "|---|" + "--:|" * len(VERDICTS)]
    for scale in scales:
        lines.append(f"| `{scale}` | " + " | ".join(str(counts[scale].get(verdict, 0)) for verdict in VERDICTS) + " |")
    return "\n".join(lines)


def bars() -> str:
    """What was asked of the speed and what came out, from the files that `make bench` wrote."""
    found = [line for path in sorted(RESULTS.glob("*.md")) for line in _rows_below("| bar |", path)]
    return "\n".join(["| what | asked for | measured | |", "|---|---|---|---|", *found])


def _rows_below(header: str, path: Path) -> list[str]:
    """The rows of every table in a Markdown file whose header begins so."""
    rows, inside = [], False
    for line in path.read_text(encoding="utf-8").splitlines():
        inside = line.startswith(header) or (inside and line.startswith("|"))
        if inside and not line.startswith((header, "|---")):
            rows.append(line)
    return rows


def gallery() -> str:
    """The figures of the demo scale, two in a row."""
    cells = [
        f"**Fig. {number}.** {figure.title}<br>![Figure {number}](figures/demo/{figure.name}.png)"
        for number, figure in FIGURES.items()
    ]
    rows = [f"| {left} | {right} |" for left, right in zip(cells[::2], cells[1::2], strict=True)]
    return "\n".join(["| | |", "|---|---|", *rows])


TABLES: dict[str, Callable[[], str]] = {
    "accuracies": accuracies,
    "masks": masks,
    "claims": claims,
    "bars": bars,
    "gallery": gallery,
    "commands": commands,
    "attacks": lambda: table(ATTACKS),
    "metrics": lambda: table(METRICS),
    "signs": signs,
    "methods": methods,
    "architectures": lambda: table(ARCHITECTURES),
    "datasets": lambda: table(DATASETS),
    "selectors": lambda: table(SELECTORS),
}


def renewed(text: str) -> str:
    """`text` with every table between `<!-- table: NAME -->` and `<!-- end -->` made anew."""
    for name, make in TABLES.items():
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        body = make()
        text, count = re.subn(pattern, lambda found, body=body: f"{found[1]}{body}\n{found[2]}", text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"README.md has {count} places for the table '{name}', not one")
    return text


if __name__ == "__main__":
    README.write_text(renewed(README.read_text(encoding="utf-8")), encoding="utf-8")
