"""Result files that know what they are of: never stale, never half-written, and damage is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from coprobe.core.files import atomic, write_json
from coprobe.errors import InputError

#: Version of what is measured and how it is written; another one makes every older result stale.
FORMAT = "coprobe-results/1"


class DamagedError(InputError):
    """A result file that does not hold what was written to it."""


def key_of(**settings: Any) -> str:
    """16 hex digits that stand for `settings` and the format of the results."""
    text = json.dumps({"format": FORMAT, **settings}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def about(path: Path) -> Path:
    """The file beside a result that says what it is of."""
    return path.with_suffix(".provenance.json")


def write(path: Path, frame: pd.DataFrame, key: str, provenance: Mapping[str, Any]) -> None:
    """Write a result and what it is of; whenever this is cut short, a reader sees the old pair, the new one or none."""
    content = frame.to_csv(index=False, lineterminator="\n").encode()
    facts = {"key": key, "sha256": _digest(content), **provenance}
    with atomic(about(path)) as new_facts, atomic(path) as new_rows:
        write_json(new_facts, facts)
        new_rows.write_bytes(content)
        about(path).unlink(missing_ok=True)  # the rows take their place first, and old facts would call them damaged


def read(path: Path, key: str) -> pd.DataFrame | None:
    """The result at `path`; None where there is none, or one of something else than `key` stands for.

    Raises:
        DamagedError: the file was changed since it was written.
    """
    if not (path.exists() and about(path).exists()):
        return None
    try:
        facts = json.loads(about(path).read_text(encoding="utf-8"))
        if facts["key"] != key:
            return None
        if facts["sha256"] == _digest(path.read_bytes()):
            # a column of empty sources is one of text, too
            return pd.read_csv(path, keep_default_na=False, na_values=[""], dtype={"source": str})
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise DamagedError(f"{path}: damaged result; 'coprobe paper --repair' makes it again")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
