"""The bytes of one file, read by position; what is not there, or changes meanwhile, is an error."""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from coprobe.errors import InputError

_CHUNK = 1 << 20
#: Of a file as large as this, at least an eighth must have been written: the rest would be read as endless zeros.
_LARGE = 1 << 30


class OpenFile:
    """A file of known size, open for reading. It isn't mapped: a mapped file that shrinks meanwhile kills the process.

    Attributes:
        path: of the file.
        size: in bytes, when it was opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        check_file(path)
        self._file = path.open("rb", buffering=0)
        self._opened = os.fstat(self._file.fileno())
        self.size = self._opened.st_size

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`, or fewer where the file ends."""
        if offset >= self.size:
            return b""
        self._file.seek(offset)
        return self._file.read(min(count, self.size - offset))

    def fill(self, offset: int, buffer: Any) -> None:
        """Fill a writable buffer of bytes with those from `offset`.

        Raises:
            InputError: the file has become shorter.
        """
        view = memoryview(buffer)
        self._file.seek(offset)
        while view:
            count = self._file.readinto(view[: 64 * _CHUNK])
            if not count:
                raise InputError("changed while it was read; wait until it is written, and read it again")
            view = view[count:]

    def chunks(self, offset: int, count: int) -> Iterator[memoryview]:
        """`count` bytes from `offset`, in portions that are valid until the next one."""
        buffer = memoryview(bytearray(min(count, _CHUNK)))
        for start in range(offset, offset + count, _CHUNK):
            part = buffer[: min(_CHUNK, offset + count - start)]
            self.fill(start, part)
            yield part

    def crc32(self, offset: int, count: int) -> int:
        """The CRC-32 of `count` bytes from `offset`."""
        crc = 0
        for part in self.chunks(offset, count):
            crc = zlib.crc32(part, crc)
        return crc

    def check_unchanged(self) -> None:
        """Raise `InputError` if the file was written to since it was opened."""
        now = os.fstat(self._file.fileno())
        if (now.st_size, now.st_mtime_ns) != (self._opened.st_size, self._opened.st_mtime_ns):
            raise InputError("changed while it was read; wait until it is written, and read it again")


def check_file(path: Path) -> None:
    """Raise `InputError`, without opening it, unless `path` is a file that can be read and holds something."""
    try:
        about = path.stat()
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", error)
        raise InputError(f"{reason}; check the path") from None
    if stat.S_ISDIR(about.st_mode):
        if (path / ".metadata").exists():
            raise InputError("is a folder of torch.distributed.checkpoint, whose index can run code; convert it with "
                             "dcp_to_torch_save where it is trusted")  # fmt: skip
        raise InputError("is a directory without a checkpoint.pt; name a checkpoint file")
    if not stat.S_ISREG(about.st_mode):
        raise InputError("is no regular file; name a checkpoint file")
    if not os.access(path, os.R_OK):
        raise InputError("no permission to read it; ask its owner for it, or name another")
    if not about.st_size:
        raise InputError("is empty; copy or download it again")
    if about.st_size >= _LARGE and 512 * getattr(about, "st_blocks", about.st_size) < about.st_size // 8:
        raise InputError(f"has {about.st_size:,} bytes, most of which were never written; copy or download it again")
