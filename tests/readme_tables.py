"""Writes the tables of README.md from the registries: `make readme`. A test compares them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import click

from coprobe.attacks import ATTACKS
from coprobe.cli import cli
from coprobe.data import DATASETS
from coprobe.masking import SELECTORS
from coprobe.models import ARCHITECTURES
from coprobe.registry import Registry
from coprobe.training import METHODS

README = Path(__file__).resolve().parents[1] / "README.md"


def table(registry: Registry) -> str:
    """Name, summary and source of everything in a registry."""
    rows = []
    for entry in registry.entries():
        name = f"{entry.name}:{entry.facts['argument']}" if "argument" in entry.facts else entry.name
        rows.append(f"| `{name}` | {entry.summary} | {entry.source} |")
    return "\n".join(["| name | what it is | source |", "|---|---|---|", *rows])


def commands() -> str:
    """Every command and its short help."""
    context = click.Context(cli)
    rows = []
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        rows.append(f"| `coprobe {name}` | {command.get_short_help_str(200)} |")
    return "\n".join(["| command | does |", "|---|---|", *rows])


TABLES: dict[str, Callable[[], str]] = {
    "commands": commands,
    "attacks": lambda: table(ATTACKS),
    "methods": lambda: table(METHODS),
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
