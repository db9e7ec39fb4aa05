"""Unpacking archives of which no member is trusted."""

from __future__ import annotations

import gzip
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, cast

from coprobe.data.bounds import cause, check_growth, short
from coprobe.errors import InputError

MAX_MEMBERS = 200_000
"""Tiny ImageNet has 120 609."""
# What the readers raise when they stumble over a damaged archive; OSError is left to mean the disk.
DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    UnicodeError,
)
_CHUNK = 1 << 20
FILE, FOLDER = "file", "folder"


@dataclass(frozen=True)
class _Member:
    name: str
    kind: str  # FILE, FOLDER, or what else it is, in words
    size: int
    content: Callable[[], IO[bytes]]


def unpack(archive: Path, into: Path) -> None:
    """Unpack a zip archive or a tar archive compressed by gzip; of what it says, only names and contents count.

    Every member is examined before the first is written. torchvision, whose function this replaces, leaves tar
    archives unchecked on Python below 3.11.4, and the size of what it unpacks always.

    Args:
        archive: the file.
        into: the folder, which must not exist yet.

    Raises:
        InputError: a damaged archive, or one with a member that would lie outside, is a link or a device, has setuid,
            is encrypted, comes twice, or is one of more than `MAX_MEMBERS`; or more content than its size can explain.
        OSError: it can't be read, or the content can't be written.
    """
    members = _zip_members if zipfile.is_zipfile(archive) else _tar_members
    try:
        _check(archive, members(archive))
        into.mkdir()
        for member in members(archive):
            target = into / member.name
            if member.kind == FOLDER:
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with member.content() as content, target.open("xb") as file:
                shutil.copyfileobj(content, file)
    except DAMAGE as error:
        raise InputError(f"{archive}: damaged archive ({cause(error)}); delete it") from None


def expand(packed: Path, into: Path) -> None:
    """Write what a gzip file holds to the file `into`.

    Raises:
        InputError: a damaged file, or one that holds more than its size can explain.
        OSError: it can't be read, or the content can't be written.
    """
    total = 0
    try:
        with gzip.open(packed) as content, into.open("wb") as file:
            while chunk := content.read(_CHUNK):
                total += file.write(chunk)
                check_growth(str(packed), packed.stat().st_size, total)
    except DAMAGE as error:
        raise InputError(f"{packed}: damaged file ({cause(error)}); delete it") from None


def _check(archive: Path, members: Iterator[_Member]) -> None:
    packed, unpacked = archive.stat().st_size, 0
    seen: set[PurePosixPath] = set()
    for member in members:
        path = PurePosixPath(member.name)
        unpacked += member.size
        check_growth(str(archive), packed, unpacked)
        if member.kind not in (FILE, FOLDER):
            problem = f"is {member.kind}"
        elif _leaves(member.name, path) or (member.kind == FILE and not path.parts):
            problem = "would not lie in the folder"
        elif member.kind == FILE and path in seen:
            problem = "comes twice"
        elif len(seen) >= MAX_MEMBERS:
            problem = f"is one of more than {MAX_MEMBERS}"
        else:
            seen.add(path)
            continue
        raise InputError(f"{archive}: member '{short(member.name)}' {problem}; nothing was unpacked, delete it")


def _leaves(name: str, path: PurePosixPath) -> bool:
    # A backslash and a colon are part of a name here, but lead elsewhere on Windows.
    return path.is_absolute() or ".." in path.parts or any(sign in name for sign in "\\:\0")


def _tar_members(archive: Path) -> Iterator[_Member]:
    with gzip.open(archive) as stream:
        limited = cast("IO[bytes]", _Limited(cast("IO[bytes]", stream), archive))
        with tarfile.open(fileobj=limited, mode="r|") as tar:
            for member in tar:
                content = cast("Callable[[], IO[bytes]]", partial(tar.extractfile, member))
                yield _Member(member.name, _tar_kind(member), member.size, content)


def _tar_kind(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return "a link"
    if not (member.isfile() or member.isdir()):
        return "a device or of an unknown kind"
    if member.isfile() and member.mode & (stat.S_ISUID | stat.S_ISGID):
        return "a program with setuid"
    return FOLDER if member.isdir() else FILE


class _Limited:
    """A stream of which no more can be read than the archive's size explains: the headers of a tar may be huge too."""

    def __init__(self, stream: IO[bytes], archive: Path) -> None:
        self._stream = stream
        self._archive = archive
        self._packed = archive.stat().st_size
        self._total = 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._total += len(data)
        check_growth(str(self._archive), self._packed, self._total // 2)  # headers and padding double small files
        return data


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            # orig_filename is what the archive says; filename ends at the first NUL.
            yield _Member(info.orig_filename, _zip_kind(info), info.file_size, partial(opened.open, info))


def _zip_kind(info: zipfile.ZipInfo) -> str:
    mode = info.external_attr >> 16
    if info.flag_bits & 1:
        return "encrypted"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a link or a device"
    if mode & (stat.S_ISUID | stat.S_ISGID) and not info.is_dir():
        return "a program with setuid"
    return FOLDER if info.is_dir() else FILE
