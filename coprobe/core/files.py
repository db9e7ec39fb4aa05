"""Writing files so that a reader never sees half of one, and so that a bad target is found before the work."""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coprobe.core.text import cut, printable, storable
from coprobe.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

TABLE_SUFFIXES = (".parquet", ".csv", ".json")
_LONGEST_ERROR, _LONGEST_NAME = 300, 120


@contextmanager
def about_file(path: str | os.PathLike[str]) -> Iterator[None]:
    """Put the name of a file before every `InputError` about it, on one line that is safe to show.

    Of a long name the end is shown, so that there is room for what is wrong and what to do.
    """
    shown = printable(str(path))
    shown = shown if len(shown) <= _LONGEST_NAME else f"…{shown[1 - _LONGEST_NAME :]}"
    try:
        yield
    except InputError as error:
        text = str(error).removeprefix(f"{path}: ").removeprefix(f"{shown}: ")
        raise InputError(f"{shown}: {cut(printable(text), _LONGEST_ERROR - len(shown) - 2)}") from error.__cause__


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it into place if the block succeeds, remove it otherwise.

    Where `path` is a symbolic link, this is done with the file that it leads to, and the link stays.

    The temporary name keeps the suffix, since writers choose the format by it. The data reach the disk
    before the rename, so a crash leaves either the old file or the new one.

    Raises:
        OSError: what the system said when the block or the rename failed, a full disk for example; it names `path`.
    """
    path = _behind_links(path)
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
def exclusive(directory: str | os.PathLike[str], *, wait: bool = True) -> Iterator[None]:
    """Keep `directory`, which is made if it is not there, to this process while the block runs.

    The system lets go when the process ends, however it ends.

    Args:
        directory: where only one is to work.
        wait: until no other process works there; else such a process is an error.

    Raises:
        InputError: another process works there, and this one is not to wait.
    """
    from filelock import FileLock, Timeout

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / ".lock"
    lock = FileLock(path, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"{directory}: another process works there; wait for it, or name another") from None
    try:
        yield
    finally:
        with suppress(PermissionError):  # Windows removes no file that is open, so filelock does it there
            path.unlink(missing_ok=True)
        lock.release()


def is_kept(directory: str | os.PathLike[str]) -> bool:
    """Whether another process keeps `directory` to itself, see `exclusive`."""
    from filelock import FileLock, Timeout

    path = Path(directory) / ".lock"
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


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
    try:
        check_writable_directory(_behind_links(path).parent)
        if _is_there(path) and path.is_dir():
            raise InputError(f"{path}: is a directory; name a file")
    except OSError as error:
        raise InputError(f"{path}: can't write there ({error.strerror}); choose another name") from None
    if suffixes and path.suffix not in suffixes:
        raise InputError(f"{path}: the name must end in {' or '.join(suffixes)}")
    return path


def check_writable_directory(directory: str | os.PathLike[str]) -> Path:
    """Check that files can be created in `directory`, which need not exist yet (see `check_writable`)."""
    directory = Path(directory)
    try:
        existing = next(place for place in (directory, *directory.parents) if _is_there(place))
        if not existing.is_dir():
            raise InputError(f"{existing}: is not a directory; choose another output directory")
        # Only a try tells: permissions say nothing about read-only and virtual file systems.
        with tempfile.TemporaryFile(dir=existing):
            return directory
    except OSError as error:
        raise InputError(
            f"{directory}: can't write there ({error.strerror}); choose another output directory"
        ) from None


def _behind_links(path: str | os.PathLike[str]) -> Path:
    """The file that a symbolic link leads to, which need not exist; an `OSError` for links that go in a circle."""
    path = Path(path)
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():  # `realpath` gives up at a circle
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return target


def _is_there(path: Path) -> bool:
    """As `os.path.lexists`, but for a name that can't be there (too long, behind a closed directory): an OSError."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


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
            storable_frame(frame).to_parquet(temporary, index=False)
        else:
            write_csv(frame, temporary)
    if path.suffix == ".csv" and frame.attrs:
        write_json(path.with_suffix(".provenance.json"), frame.attrs)


def write_csv(frame: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    r"""Write the rows as they are, not atomically; only what UTF-8 can't hold, and `\r`, is escaped."""
    # Python's writer puts no quotes around a lone \r, and every reader would end the row there.
    frame.replace("\r", r"\\r", regex=True).to_csv(path, index=False, errors="backslashreplace")


def storable_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with lone surrogates, which Parquet can't hold, escaped in columns of mixed objects."""
    mixed = [str(name) for name in frame if frame[name].dtype == object]
    return frame.assign(
        **{name: frame[name].map(lambda cell: storable(cell) if isinstance(cell, str) else cell) for name in mixed}
    )


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of `frame` as plain values that strict JSON can hold (NaN and infinities become None)."""
    rows = [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]
    for row in rows:
        row.update({key: None for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)})
    return rows
