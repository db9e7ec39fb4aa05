"""Writers of the containers, byte by byte as torch and safetensors write them, with every field open to a lie."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from tests.checkpoint.reader import opcodes as op

#: Four float32 elements, 0 to 3: what every honest tensor of the corpus holds.
FOUR = struct.pack("<4f", 0, 1, 2, 3)
_DESCRIPTOR = 0x8
_MAGIC = 0x1950A86A20F9469CFC6C


@dataclass(frozen=True)
class Member:
    """A member of a zip archive; what is None or 0 is told as it is.

    Attributes:
        name, data: what it is, as the archive's directory has it.
        flags: by default those of torch: sizes behind the data, name in UTF-8.
        method: 0 as it is, 8 deflated (then `data` is what stands in the file and `size` what it claims to become).
        crc, size, packed: what the directory claims.
        local: fields of the header before the data that differ from the directory's: name, crc, size, method, flags.
        offset: where the directory says that it begins; nothing is written if `ghost`.
        extra: extra field of its entry in the directory.
        attributes: of the file, in the upper half the mode of Unix.
    """

    name: str | bytes
    data: bytes = b""
    flags: int = 0x808
    method: int = 0
    crc: int | None = None
    size: int | None = None
    packed: int | None = None
    local: Mapping[str, bytes | int] | None = None
    offset: int | None = None
    ghost: bool = False
    extra: bytes = b""
    attributes: int = 0

    @property
    def raw_name(self) -> bytes:
        return self.name.encode() if isinstance(self.name, str) else self.name

    @property
    def fields(self) -> tuple[int, int, int]:
        """CRC, packed and unpacked size, as claimed."""
        crc = zlib.crc32(self.data) if self.crc is None else self.crc
        packed = len(self.data) if self.packed is None else self.packed
        return crc, packed, len(self.data) if self.size is None else self.size

    def header(self, position: int) -> bytes:
        """The local header, padded as torch does so that the data begin at a multiple of 64."""
        local = dict(self.local or {})
        name, flags = local.get("name", self.raw_name), local.get("flags", self.flags)
        crc, packed, size = (0, 0, 0) if int(flags) & _DESCRIPTOR else self.fields
        crc, size = local.get("crc", crc), local.get("size", size)
        padding = b"FB" + struct.pack("<H", -(position + 34 + len(bytes(name))) % 64)
        padding += b"Z" * (-(position + 34 + len(bytes(name))) % 64)
        fields = (0, flags, local.get("method", self.method), 0, 0, crc, packed, size, len(bytes(name)), len(padding))
        return b"PK\x03\x04" + struct.pack("<5H3I2H", *fields) + bytes(name) + padding

    def descriptor(self) -> bytes:
        if not self.flags & _DESCRIPTOR:
            return b""
        crc, packed, size = self.fields
        return b"PK\x07\x08" + struct.pack("<3I", crc, packed % 2**32, size % 2**32)

    def entry(self, position: int) -> bytes:
        crc, packed, size = self.fields
        place = position if self.offset is None else self.offset
        head = (0, 0, self.flags, self.method, 0, 0, crc, packed, size, len(self.raw_name), len(self.extra))
        return (
            b"PK\x01\x02"
            + struct.pack("<6H3I5H2I", *head, 0, 0, 0, self.attributes, place)
            + self.raw_name
            + self.extra
        )


@dataclass(frozen=True)
class End:
    """What the end of an archive claims, as differences to the truth, in its 32-bit record and its 64-bit one."""

    count: int = 0
    length: int = 0
    start: int = 0
    disk: int = 0
    wide: bool = True
    wide_count: int | None = None
    wide_start: int | None = None
    locator: int = 0
    comment: bytes = b""
    comment_length: int = 0


def archive(members: Iterable[Member], *, end: End | None = None, prefix: bytes = b"") -> bytes:
    """A zip archive; `prefix` stands before it and is counted in all its offsets."""
    end = end or End()
    body, directory, count = bytearray(prefix), bytearray(), 0
    for member in members:
        directory += member.entry(len(body))
        count += 1
        if not member.ghost:
            body += member.header(len(body)) + member.data + member.descriptor()
    start = len(body)
    body += directory
    told = (count + end.count, len(directory) + end.length, start + end.start)
    if end.wide:
        place = len(body) + end.locator
        wide_count = told[0] if end.wide_count is None else end.wide_count
        wide_start = told[2] if end.wide_start is None else end.wide_start
        body += b"PK\x06\x06" + struct.pack("<Q2H2I4Q", 44, 0, 0, 0, 0, wide_count, wide_count, told[1], wide_start)
        body += b"PK\x06\x07" + struct.pack("<IQI", 0, place % 2**64, 1)
    short = min(told[0], 0xFFFF)
    body += (
        b"PK\x05\x06"
        + struct.pack(
            "<4H2IH", end.disk, end.disk, short, short, told[1], told[2] % 2**32, len(end.comment) + end.comment_length
        )
        + end.comment
    )
    return bytes(body)


def members(pickle: bytes, storages: Mapping[str, bytes] | None = None, *, root: str = "archive") -> list[Member]:
    """The members that torch.save writes."""
    storages = {"0": FOUR} if storages is None else storages
    return [
        Member(f"{root}/data.pkl", pickle),
        Member(f"{root}/.format_version", b"1"),
        Member(f"{root}/.storage_alignment", b"64"),
        Member(f"{root}/byteorder", b"little"),
        *(Member(f"{root}/data/{key}", data) for key, data in storages.items()),
        Member(f"{root}/version", b"3\n"),
        Member(f"{root}/.data/serialization_id", b"0" * 40),
    ]


def changed(all_members: list[Member], ending: str, **fields: object) -> list[Member]:
    """The members, with fields of the one whose name ends so replaced."""
    assert sum(str(member.name).endswith(ending) for member in all_members) == 1
    return [replace(m, **fields) if str(m.name).endswith(ending) else m for m in all_members]


def zipped(value: bytes, storages: Mapping[str, bytes] | None = None, *, protocol: int = 2) -> bytes:
    """A whole zip checkpoint of one value."""
    return archive(members(op.pickled(value, protocol), storages))


def legacy(
    value: bytes,
    storages: Mapping[str, tuple[int, bytes]] | None = None,
    *,
    magic: bytes | None = None,
    version: bytes | None = None,
    system: bytes | None = None,
    keys: bytes | None = None,
    protocol: int = 2,
) -> bytes:
    """A checkpoint as torch wrote it before 1.6; each of its five pickles can be another.

    Args:
        storages: declared number of elements and bytes of each.
        magic, version, system, keys: the whole pickles in their place.
    """
    storages = {"0": (4, FOUR)} if storages is None else storages
    widths = op.named(short=op.number(2), int=op.number(4), long=op.number(4))
    default = op.named(protocol_version=op.number(1001), little_endian=op.TRUE, type_sizes=widths)
    return b"".join(
        (
            op.pickled(op.number(_MAGIC)) if magic is None else magic,
            op.pickled(op.number(1001)) if version is None else version,
            op.pickled(default) if system is None else system,
            op.pickled(value, protocol),
            op.pickled(op.listing(*map(op.text, storages))) if keys is None else keys,
            *(struct.pack("<q", numel) + data for numel, data in storages.values()),
        )
    )


def safetensors(header: object, data: bytes = FOUR, *, length: int | None = None) -> bytes:
    """A safetensors file; `header` is JSON to be, or bytes as they are, and `length` what it claims to have."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def described(start: int = 0, end: int = 16, shape: object = (4,), dtype: object = "F32") -> dict[str, object]:
    """What the header of a safetensors file says of one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
