"""Writing files so that a reader never sees half of one, and so that a bad target is found before the work."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coprobe.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

TABLE_SUFFIXES = (".parquet", ".csv", ".json")


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it into place if the block succeeds, remove it otherwise.

    The temporary name keeps the suffix, since writers choose the format by it. The data reach the disk
    before the rename, so a crash leaves either the old file or the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str], suffixes: tuple[str, ...] = ()) -> Path:
    """Check before the work that a file can be written at `path`.

    Raises:
        InputError: `path` is a directory, has a suffix outside `suffixes`, or its nearest existing parent
            is no directory that may be written to.
    """
    path = Path(path)
    if suffixes and path.suffix.lower() not in suffixes:
        raise InputError(f"{path}: can't write '{path.suffix}' files here; use {', '.join(suffixes)}")
    if path.is_dir():
        raise InputError(f"{path}: is a directory; name a file")
    check_writable_directory(path.parent)
    return path


def check_writable_directory(directory: str | os.PathLike[str]) -> Path:
    """Check that files can be created in `directory`, which need not exist yet (see `check_writable`)."""
    directory = Path(directory)
    existing = directory
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"{existing}: is not a directory; choose another output directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{existing}: no permission to write there; choose another output directory")
    return directory


def write_json(path: str | os.PathLike[str], data: Any) -> None:
    """Write `data` as indented JSON, atomically."""
    text = json.dumps(data, indent=2, allow_nan=False, default=str) + "\n"
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_table(frame: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write a tidy table by suffix: .parquet, .csv or .json.

    `frame.attrs` (plain values: provenance, settings) goes into the Parquet metadata, into the JSON object
    beside the rows, or, for CSV, into `NAME.provenance.json` beside the file.

    Raises:
        InputError: another suffix, or a target that can't be written.
    """
    path = check_writable(path, TABLE_SUFFIXES)
    if path.suffix == ".json":
        write_json(path, {**frame.attrs, "rows": records(frame)})
        return
    with atomic(path) as temporary:
        if path.suffix == ".parquet":
            frame.to_parquet(temporary, index=False)
        else:
            frame.to_csv(temporary, index=False)
    if path.suffix == ".csv" and frame.attrs:
        write_json(path.with_suffix(".provenance.json"), frame.attrs)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of `frame` as plain values that strict JSON can hold (NaN and infinities become None)."""
    rows: list[dict[str, Any]] = json.loads(frame.to_json(orient="records", double_precision=15))
    return rows
