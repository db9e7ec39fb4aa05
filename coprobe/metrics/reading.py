"""Statistics read back from the files that `coprobe.core.files.write_table` wrote, their provenance included."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path

import pandas as pd

from coprobe.errors import InputError


def read_frame(path: str | Path, what: str, columns: Collection[str]) -> pd.DataFrame:
    """Read a table by suffix, its provenance in `attrs`.

    Args:
        path: a .parquet, .csv or .json file.
        what: it should hold, in words.
        columns: it must have.

    Raises:
        InputError: it can't be read, or lacks a column.
    """
    path = Path(path)
    try:
        frame = _READERS[path.suffix.lower()](path)
    except Exception as error:  # pandas and pyarrow raise a dozen types for damaged files
        raise InputError(f"{path}: can't be read as {what}; make them again") from error
    missing = set(columns) - set(frame.columns)
    if missing:
        raise InputError(f"{path}: no {what} (lacks {', '.join(sorted(missing))})")
    return frame


def _read_csv(path: Path) -> pd.DataFrame:
    frame = pd.read_csv(path, dtype={"node": str})  # text also where a module is called "1"
    about = path.with_suffix(".provenance.json")
    frame.attrs = json.loads(about.read_text(encoding="utf-8")) if about.exists() else {}
    return frame


def _read_json(path: Path) -> pd.DataFrame:
    about = json.loads(path.read_text(encoding="utf-8"))
    frame = pd.DataFrame(about.pop("rows"))
    frame.attrs = about
    return frame


_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".parquet": pd.read_parquet,
    ".csv": _read_csv,
    ".json": _read_json,
}
