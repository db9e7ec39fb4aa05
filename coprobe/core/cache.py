"""Tables that are made once and found again for the same inputs and settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coprobe.core.files import write_table
from coprobe.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Cache:
    """A directory in which tables are kept and looked up by what they are of.

    Args:
        directory: of the files; None keeps nothing and finds nothing.
    """

    directory: Path | None

    def _path(self, kind: str, identity: Mapping[str, Any]) -> Path | None:
        if self.directory is None:
            return None
        key = json.dumps(identity, sort_keys=True)
        return self.directory / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.parquet"

    def holds(self, kind: str) -> bool:
        """Whether any table of this kind is kept, so that it is worth finding out what to look for."""
        return self.directory is not None and any(self.directory.glob(f"{kind}-*.parquet"))

    def find(self, kind: str, identity: Mapping[str, Any]) -> pd.DataFrame | None:
        """The table that is kept under `kind` and `identity`, with its `attrs`; None if there is none.

        Args:
            kind: in a word, the beginning of the file name.
            identity: everything that the table depends on, as plain values.

        Raises:
            InputError: the file is there but can't be read.
        """
        import pandas as pd

        path = self._path(kind, identity)
        if path is None or not path.exists():
            return None
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:  # pyarrow's errors are both
            raise InputError(f"{path}: can't be read; delete it, and it is made again") from error

    def keep(self, kind: str, identity: Mapping[str, Any], frame: pd.DataFrame) -> None:
        """Keep a table, and its `attrs`, for `find`."""
        path = self._path(kind, identity)
        if path is not None:
            write_table(frame, path)
