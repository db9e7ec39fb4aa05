"""Writing files so that a reader never sees half of one, and so that a bad target is found before the work."""

from __future__ import annotations

import json
import math
import os
import secrets
import tempfile
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

    Raises:
        OSError: what the system said when the block or the rename failed, a full disk for example; it names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        # torch says of a full disk no more than "unexpected pos 64 vs 0".
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError) or cause.errno is None:
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def exclusive(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Wait until no other process works in `directory`, and keep the others waiting while the block runs.

    The system lets go when the process ends, however it ends. Windows has no such lock, and nothing waits there.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (directory / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sweep(directory: str | os.PathLike[str]) -> None:
    """Remove what killed processes left half-written in `directory` (see `atomic`); none may be at work there."""
    for path in Path(directory).glob(".*.tmp*"):
        path.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str], suffixes: tuple[str, ...] = ()) -> Path:
    """Check before the work that a file can be written at `path`.

    Raises:
        InputError: `path` is a directory, has a suffix outside `suffixes`, or its nearest existing parent
            is no directory that can be written to.
    """
    path = Path(path)
    check_writable_directory(path.parent)
    if path.is_dir():
        raise InputError(f"{path}: is a directory; name a file")
    if suffixes and path.suffix not in suffixes:
        raise InputError(f"{path}: the name must end in {' or '.join(suffixes)}")
    return path


def check_writable_directory(directory: str | os.PathLike[str]) -> Path:
    """Check that files can be created in `directory`, which need not exist yet (see `check_writable`)."""
    directory = Path(directory)
    try:
        existing = next(place for place in (directory, *directory.parents) if os.path.lexists(place))
        if not existing.is_dir():
            raise InputError(f"{existing}: is not a directory; choose another output directory")
        # Only a try tells: permissions say nothing about read-only and virtual file systems.
        with tempfile.TemporaryFile(dir=existing):
            return directory
    except OSError as error:
        raise InputError(
            f"{directory}: can't write there ({error.strerror}); choose another output directory"
        ) from None


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
    rows = [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]
    for row in rows:
        row.update({key: None for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)})
    return rows
