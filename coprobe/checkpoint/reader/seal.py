"""A SHA-256 over every byte of our own checkpoints, so that not one changed bit of them goes unseen.

The CRC-32 of an archive leaves its headers uncovered, and safetensors has no checksum at all. In a zip archive the
seal is the archive's comment, its last bytes, over all bytes before it; torch reads such an archive as any other.
In a safetensors file it is an entry of the metadata, over the whole file with zeros in its own place.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path

from coprobe.checkpoint.reader.file import OpenFile
from coprobe.errors import InputError

#: The entries of a safetensors file's metadata: what coprobe says about the file, and the seal.
ABOUT, SEAL = "coprobe-about", "coprobe-seal"
_PREFIX = b"coprobe sha256 "
_DIGITS = 64
BLANK = "0" * _DIGITS
_BROKEN = "is damaged: its content doesn't fit its seal; copy it again, or take another checkpoint of the run"


def seal_archive(path: Path) -> None:
    """Append the seal to a zip archive without a comment."""
    with path.open("rb+") as target:
        target.seek(-2, 2)
        target.write(struct.pack("<H", len(_PREFIX) + _DIGITS))
    with OpenFile(path) as file:
        seal = _PREFIX + _digest(file, file.size, ()).encode()
    with path.open("ab") as target:
        target.write(seal)


def seal_safetensors(path: Path) -> None:
    """Fill in the seal of a safetensors file whose metadata has `BLANK` in its place."""
    with OpenFile(path) as file:
        place = _place(file)
        digest = _digest(file, file.size, (place, place + _DIGITS))
    with path.open("rb+") as target:
        target.seek(place)
        target.write(digest.encode())


def check_comment(file: OpenFile, comment: bytes) -> bool:
    """Whether an archive with this comment carries a seal.

    Raises:
        InputError: the seal doesn't fit, or the comment is something else.
    """
    if not comment:
        return False
    if comment != _PREFIX + _digest(file, file.size - len(comment), ()).encode():
        raise InputError(_BROKEN)
    return True


def check_metadata(file: OpenFile, metadata: Mapping[str, str]) -> bool:
    """Whether a safetensors file with this metadata carries a seal.

    Raises:
        InputError: the seal doesn't fit.
    """
    if SEAL not in metadata:
        if ABOUT in metadata:
            raise InputError(_BROKEN)
        return False
    place = _place(file)
    if metadata[SEAL] != _digest(file, file.size, (place, place + _DIGITS)):
        raise InputError(_BROKEN)
    return True


def _place(file: OpenFile) -> int:
    """Where in a safetensors file the digits of the seal stand."""
    header = file.read(8, int.from_bytes(file.read(0, 8), "little"))
    marker = f'"{SEAL}":"'.encode()
    if header.count(marker) != 1:
        raise InputError(_BROKEN)
    return 8 + header.index(marker) + len(marker)


def _digest(file: OpenFile, size: int, blank: tuple[int, int] | tuple[()]) -> str:
    """SHA-256 of the first `size` bytes, taking those from `blank[0]` to `blank[1]` as zero digits."""
    sha = hashlib.sha256()
    begin, end = blank or (size, size)
    for start, stop in ((0, begin), (end, size)):
        for part in file.chunks(start, stop - start):
            sha.update(part)
        if stop == begin and blank:
            sha.update(BLANK.encode())
    return sha.hexdigest()
