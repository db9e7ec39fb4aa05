"""Which checkpoint was probed last, so that the next command need not name it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from coprobe.cli.output import message
from coprobe.core.files import write_json
from coprobe.errors import InputError

_KEPT = 50


def _file() -> Path:
    return Path(os.environ.get("COPROBE_STATE") or click.get_app_dir("coprobe")) / "last.json"


def _read() -> dict[str, str]:
    try:
        remembered = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return remembered if isinstance(remembered, dict) else {}


def remember(checkpoint: Path) -> None:
    """Note that `checkpoint` was probed last from this directory; without a place to note it, don't."""
    here = str(Path.cwd())
    remembered = {place: path for place, path in _read().items() if place != here}
    latest = dict([*remembered.items(), (here, str(checkpoint.resolve()))][-_KEPT:])
    try:
        write_json(_file(), latest)
    except OSError:
        return


def recall() -> Path:
    """The checkpoint probed last from this directory, else that of the newest run below it; says which it is.

    Raises:
        InputError: there is neither.
    """
    last = Path(_read().get(str(Path.cwd()), ""))
    if last.is_file():
        message(f"{last} (probed last)")
        return last
    runs = [*Path.cwd().glob("*/checkpoint.pt"), *Path.cwd().glob("*/*/checkpoint.pt")]
    if not runs:
        raise InputError("no checkpoint named, none probed from here before, no run below this directory; name one")
    newest = max(runs, key=lambda path: path.stat().st_mtime)
    message(f"{newest} (newest run)")
    return newest
