"""The zip archives that torch writes: members in one folder, each described twice.

Python's zipfile and torch's own reader take archives that mean different things to different readers: two members
of one name, a directory that says other than the members. Here both descriptions must agree, members must not
overlap, and nothing may stand before, between or behind them.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass

from coprobe.checkpoint.reader.file import OpenFile
from coprobe.errors import InputError

#: More members than the largest honest checkpoints have; each costs some hundred bytes of memory.
MOST_MEMBERS = 150_000
_END, _END64, _LOCATOR, _ENTRY, _LOCAL = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02", b"PK\x03\x04"
_LONGEST_COMMENT = 0xFFFF
_DESCRIBED_BEHIND, _UTF8 = 0x8, 0x800
#: What may stand behind a member whose sizes are described there: with or without signature, 32 or 64 bits.
_DESCRIPTORS = (0, 12, 16, 20, 24)
_DAMAGED = "is a damaged or forged archive"
_REMEDY = "copy or download it again, or save the state_dict anew"


@dataclass(frozen=True)
class Member:
    """Where the bytes of a member are, and their CRC-32 by the archive's own word; torch compresses none."""

    name: str
    offset: int
    size: int
    crc: int
    compressed: bool = False


@dataclass(frozen=True)
class Archive:
    """A checked archive.

    Attributes:
        members: by their names without the folder that all of them are in.
        comment: of the archive.
    """

    members: dict[str, Member]
    comment: bytes


def read_archive(file: OpenFile) -> Archive:
    """Check the directory of an archive against its members, without reading their content.

    Raises:
        InputError: cut short; encrypted members; anything that two readers could understand differently.
    """
    count, start, length, comment = _find_directory(file)
    if count > MOST_MEMBERS or length > 200 * MOST_MEMBERS:
        raise InputError(
            f"is an archive of {count} members, and coprobe reads {MOST_MEMBERS}; save the state_dict alone"
        )
    directory = file.read(start, length)
    members: dict[str, Member] = {}
    spans = []
    place = 0
    for _ in range(count):
        member, place, span = _read_member(file, directory, place)
        if member.name in members:
            raise InputError(f"is an ambiguous archive, with two members '{member.name}'; {_REMEDY}")
        members[member.name] = member
        spans.append(span)
    if place != length:
        raise InputError(f"{_DAMAGED} (its directory is longer than its members); {_REMEDY}")
    _check_order(sorted(spans), start)
    return Archive(_without_folder(members), comment)


def _find_directory(file: OpenFile) -> tuple[int, int, int, bytes]:
    """Number of members, start and length of the directory, and the comment."""
    tail = file.read(max(0, file.size - _LONGEST_COMMENT - 22), _LONGEST_COMMENT + 22)
    first = file.size - len(tail)
    ends = []
    place = tail.find(_END)
    while place >= 0:
        if place + 22 <= len(tail) and struct.unpack_from("<H", tail, place + 20)[0] == len(tail) - place - 22:
            ends.append(place)
        place = tail.find(_END, place + 1)
    if not ends:
        raise InputError(
            f"is an archive cut short, or still being written (no end in its {file.size:,} bytes); copy it again"
        )
    if len(ends) > 1:
        raise InputError(f"is an ambiguous archive, with {len(ends)} ends; {_REMEDY}")
    end = ends[0]
    disk, disk_of_directory, here, count, length, start = struct.unpack_from("<4H2I", tail, end + 4)
    behind = first + end
    if end >= 20 and tail[end - 20 : end - 16] == _LOCATOR:
        behind, *wide = _wide_end(file, tail[end - 20 : end])
        if behind + 56 != first + end - 20:
            raise InputError(f"{_DAMAGED} (there are bytes between its ends); {_REMEDY}")
        for narrow, limit, value in zip((count, length, start), (0xFFFF, 2**32 - 1, 2**32 - 1), wide, strict=True):
            if narrow not in (value, limit):
                raise InputError(f"{_DAMAGED} (its two ends differ); {_REMEDY}")
        here = count = wide[0]
        length, start = wide[1:]
    if disk or disk_of_directory or here != count or start + length != behind:
        raise InputError(f"{_DAMAGED} (its directory is not where its end says); {_REMEDY}")
    return count, start, length, tail[end + 22 :]


def _wide_end(file: OpenFile, locator: bytes) -> tuple[int, int, int, int]:
    """Place of the 64-bit end record, and from it number of members, length and start of the directory."""
    disk, place, disks = struct.unpack_from("<IQI", locator, 4)
    record = file.read(place, 56)
    if len(record) < 56 or record[:4] != _END64 or disk or disks != 1:
        raise InputError(f"{_DAMAGED} (no 64-bit end where it is announced); {_REMEDY}")
    size, _, _, disk, other, here, count, length, start = struct.unpack_from("<Q2H2I4Q", record, 4)
    if size != 44 or disk or other or here != count:
        raise InputError(f"{_DAMAGED} (its 64-bit end is inconsistent); {_REMEDY}")
    return place, count, length, start


def _read_member(file: OpenFile, directory: bytes, place: int) -> tuple[Member, int, tuple[int, int, bool]]:
    """The member described at `place`, where the next description is, and (begin, end, descriptor behind it?)."""
    if directory[place : place + 4] != _ENTRY or place + 46 > len(directory):
        raise InputError(f"{_DAMAGED} (its directory has other members than it counts); {_REMEDY}")
    _, *common, packed, size, name_length, extra_length, comment_length, disk, _, attributes, offset = (
        struct.unpack_from("<6H3I5H2I", directory, place + 4)
    )
    flags, method, crc = common[1], common[2], common[5]
    name_at = place + 46
    raw = directory[name_at : name_at + name_length]
    extra = directory[name_at + name_length : name_at + name_length + extra_length]
    size, packed, offset = _widened(extra, size, packed, offset)
    name = _checked_name(raw)
    if flags & ~(_DESCRIBED_BEHIND | _UTF8) or disk or comment_length:
        raise InputError(f"is an archive with the encrypted or unknown member '{name}'; {_REMEDY}")
    if stat.S_ISLNK(attributes >> 16):
        raise InputError(f"is an archive with the link '{name}'; {_REMEDY}")
    begin = _check_local(file, offset, name, raw, common, packed, size)
    if begin + packed > file.size:
        raise InputError(f"{_DAMAGED} (member '{name}' has {packed:,} bytes, more than the file); {_REMEDY}")
    following = name_at + name_length + extra_length
    member = Member(name, begin, size, crc, compressed=bool(method) or packed != size)
    return member, following, (offset, begin + packed, bool(flags & _DESCRIBED_BEHIND))


def _widened(extra: bytes, *narrow: int) -> tuple[int, ...]:
    """Fields of which each that is full stands, 64 bits wide, in the extra field number 1."""
    place, wide = 0, b""
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, place)
        if kind == 1:
            wide = extra[place + 4 : place + 4 + length]
        place += 4 + length
    values, place = [], 0
    for value in narrow:
        if value < 2**32 - 1:
            values.append(value)
            continue
        if place + 8 > len(wide):
            raise InputError(f"{_DAMAGED} (a 64-bit size is missing); {_REMEDY}")
        values += struct.unpack_from("<Q", wide, place)
        place += 8
    return tuple(values)


def _checked_name(raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{_DAMAGED} (a member's name is no text); {_REMEDY}") from None
    parts = name.split("/")
    if len(name) > 1000 or not all(parts) or "." in parts or ".." in parts or set(name) & set("\\:\0"):
        raise InputError(f"is an archive with a member of the unsafe name '{name[:60]}'; {_REMEDY}")
    return name


def _check_local(file: OpenFile, offset: int, name: str, raw: bytes, common: list[int], packed: int, size: int) -> int:
    """Compare the header in front of a member with the directory; returns where its bytes begin."""
    header = file.read(offset, 30 + len(raw))
    if len(header) < 30 + len(raw) or header[:4] != _LOCAL:
        raise InputError(f"{_DAMAGED} (no member '{name}' where the directory says); {_REMEDY}")
    *own, crc, own_packed, own_size, name_length, extra_length = struct.unpack_from("<5H3I2H", header, 4)
    if 2**32 - 1 in (own_packed, own_size):
        own_size, own_packed = _widened(file.read(offset + 30 + name_length, extra_length), own_size, own_packed)
    said = (crc, own_packed, own_size)
    described_behind = common[1] & _DESCRIBED_BEHIND and said in ((0, 0, 0), (0, packed, size))
    if own[1:] != common[1:5] or not (described_behind or said == (common[5], packed, size)):
        raise InputError(f"is an ambiguous archive (member '{name}' is described in two ways); {_REMEDY}")
    if header[30:] != raw or name_length != len(raw):
        raise InputError(f"is an ambiguous archive (member '{name}' has two names); {_REMEDY}")
    return offset + 30 + name_length + extra_length


def _check_order(spans: list[tuple[int, int, bool]], directory: int) -> None:
    """Members must follow each other from the first byte on, with nothing but their descriptors between."""
    place, described_behind = 0, False
    for begin, end, flagged in [*spans, (directory, directory, False)]:
        if begin - place not in (_DESCRIPTORS if described_behind else (0,)):
            raise InputError(f"{_DAMAGED} (there are bytes between its members, or they overlap); {_REMEDY}")
        place, described_behind = end, flagged


def _without_folder(members: dict[str, Member]) -> dict[str, Member]:
    """The members by their names below the one folder that all are in."""
    folders = {name.partition("/")[0] for name in members}
    if len(folders) != 1 or not all("/" in name for name in members):
        return members  # no torch file; which kind it is shows in the names
    return {name.partition("/")[2]: member for name, member in members.items()}
