"""The result store: tables that know what they are of, never stale, never half-written, and damage is noticed.

A table lies beside a file of provenance with its key, a digest of everything that the result depends on and of the
version of what measured it, so that a change of code which changes numbers makes it anew, and another doesn't.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coprobe.core.files import atomic, storable_frame, write_json
from coprobe.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

#: Version of how results are written and of everything that they are made with; another one makes all of them stale.
FORMAT = "coprobe-results/1"


class DamagedError(InputError):
    """A result file that does not hold what was written to it."""


def key_of(**settings: Any) -> str:
    """16 hex digits that stand for `settings` and the format of the results."""
    text = json.dumps({"format": FORMAT, **settings}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def provenance_of(path: Path) -> Path:
    """The file beside a result that says what it is of."""
    return path.with_suffix(".provenance.json")


def write(path: Path, frame: pd.DataFrame, key: str, provenance: Mapping[str, Any]) -> None:
    """Write a result and what it is of; whenever this is cut short, a reader sees the old pair, the new one or none.

    Args:
        path: its suffix says how, .csv or .parquet; the latter holds the table's `attrs`, too.
        frame: the result.
        key: see `key_of`.
        provenance: plain values.
    """
    content = _encoded(frame, path.suffix)
    facts = {"key": key, "sha256": _digest(content), **provenance}
    with atomic(provenance_of(path)) as new_facts, atomic(path) as new_rows:
        write_json(new_facts, facts)
        new_rows.write_bytes(content)
        # the rows take their place first, and old facts would call them damaged
        provenance_of(path).unlink(missing_ok=True)


def read(path: Path, key: str, remedy: str = "'coprobe paper --repair' makes it again") -> pd.DataFrame | None:
    """The result at `path`; None where there is none, or one of something else than `key` stands for.

    Raises:
        DamagedError: the file was changed since it was written; `remedy` says what to do.
    """
    import pandas as pd

    if not (path.exists() and provenance_of(path).exists()):
        return None
    try:
        facts = json.loads(provenance_of(path).read_text(encoding="utf-8"))
        if facts["key"] != key:
            return None
        content = path.read_bytes()
        if facts["sha256"] == _digest(content):
            if path.suffix == ".parquet":
                return pd.read_parquet(io.BytesIO(content))
            # a column of empty sources is one of text, too
            text = {"source": str, "source_weights": str}
            return pd.read_csv(io.BytesIO(content), keep_default_na=False, na_values=[""], dtype=text)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise DamagedError(f"{path}: damaged result; {remedy}")


def _encoded(frame: pd.DataFrame, suffix: str) -> bytes:
    if suffix == ".parquet":
        content: bytes = storable_frame(frame).to_parquet(index=False)
        return content
    return frame.to_csv(index=False, lineterminator="\n").encode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class ResultStore:
    """A directory in which results are kept, and found again by what they are of.

    Args:
        directory: of the files; None keeps nothing and finds nothing.
    """

    directory: Path | None

    def holds(self, kind: str) -> bool:
        """Whether any result of this kind is kept, so that it is worth finding out what to look for."""
        return self.directory is not None and any(self.directory.glob(f"{kind}-*.parquet"))

    def find(self, kind: str, **settings: Any) -> pd.DataFrame | None:
        """The result that is kept under `kind` and `settings`, with its `attrs`; None if there is none.

        Args:
            kind: in a word, the beginning of the file name.
            settings: everything that the result depends on, as plain values.

        Raises:
            DamagedError: the file is there, and was changed since it was written.
        """
        if self.directory is None:
            return None
        key = key_of(**settings)
        path = self._path(kind, key)
        return read(path, key, "delete it, and it is made again")

    def keep(self, kind: str, frame: pd.DataFrame, **settings: Any) -> None:
        """Keep a result, and its `attrs`, for `find`."""
        if self.directory is not None:
            key = key_of(**settings)
            write(self._path(kind, key), frame, key, {str(name): value for name, value in frame.attrs.items()})

    def drop(self, kind: str, **settings: Any) -> None:
        """Forget a result, if it is kept."""
        if self.directory is not None:
            path = self._path(kind, key_of(**settings))
            for file in (provenance_of(path), path):
                file.unlink(missing_ok=True)

    def _path(self, kind: str, key: str) -> Path:
        assert self.directory is not None
        return self.directory / f"{kind}-{key}.parquet"
