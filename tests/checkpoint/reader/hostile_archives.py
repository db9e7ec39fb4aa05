"""Zip archives that mean different things to different readers, or cost more than they weigh."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator

from tests.checkpoint.reader import opcodes as op
from tests.checkpoint.reader import writers
from tests.checkpoint.reader.corpus import Entry, Trap
from tests.checkpoint.reader.writers import End, Member, archive, changed

_PICKLE = op.pickled(op.named(w=op.vector()))
_OTHER = op.pickled(op.named(w=op.vector(2), other=op.TRUE))
_SYMLINK = 0o120777 << 16
_ZIP64 = struct.pack("<2H3Q", 1, 24, 2**40, 2**40, 0)


def _honest() -> list[Member]:
    return writers.members(_PICKLE)


def _added(*more: Member) -> bytes:
    return archive([*_honest(), *more])


def _patched(ending: str, **fields: object) -> bytes:
    return archive(changed(_honest(), ending, **fields))


def _squeezed(ending: str, method: int, data: bytes, content: bytes) -> bytes:
    return _patched(ending, method=method, data=data, size=len(content), crc=zlib.crc32(content), packed=len(data))


def _deflated(data: bytes) -> bytes:
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return squeezer.compress(data) + squeezer.flush()


def _deflated_zeros(megabytes: int) -> bytes:
    """Zeros, deflated; the work for one megabyte is repeated as bytes."""
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    one = squeezer.compress(bytes(2**20)) + squeezer.flush(zlib.Z_FULL_FLUSH)
    return one * megabytes + b"\x03\x00"


def _bomb(ending: str) -> bytes:
    """A member of 4 GiB minus 1 MiB of zeros; its CRC is a lie, since nobody should live to check it."""
    return _patched(ending, method=8, data=_deflated_zeros(4095), size=4095 * 2**20, crc=0)


def _second_directory() -> bytes:
    """An archive of two directories: the 32-bit end leads to one, the 64-bit end to the other."""
    first = archive(_honest(), end=End(wide=False))
    start = first.index(b"PK\x01\x02")
    directory = first[start : first.rindex(b"PK\x05\x06")].replace(b"archive/data.pkl", b"archive/evil.pkl")
    body = first[:start] + directory
    return body + archive(_honest(), end=End(wide_start=start), prefix=body)[len(body) :]


def _overlapping() -> bytes:
    """Members that begin in the header of another one."""
    return archive([*_honest(), Member("archive/data/1", writers.FOUR, offset=0, ghost=True)])


def _quoted() -> bytes:
    """A member whose data are the other members (as in Fifield's bomb)."""
    inner = archive(_honest(), end=End(wide=False))
    inner = inner[: inner.index(b"PK\x01\x02")]
    outer = Member("archive/data/9", inner)
    shift = len(outer.header(0))
    place, ghosts = shift, []
    for member in _honest():
        ghosts.append(Member(member.name, member.data, offset=place, ghost=True))
        place += len(member.header(place - shift)) + len(member.data) + len(member.descriptor())
    return archive([outer, *ghosts])


#: Archives by what is wrong with them, and what the error must say.
BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "up": (lambda: _added(Member("archive/../../x", b"x")), "name"),
    "absolute": (lambda: _added(Member("/archive/x", b"x")), "name"),
    "backslash": (lambda: _added(Member("archive\\..\\x", b"x")), "name"),
    "drive": (lambda: _added(Member("archive/C:/x", b"x")), "name"),
    "zero-in-name": (lambda: _added(Member("archive/data/0\0.pkl", b"x")), ""),
    "dot-name": (lambda: _added(Member("archive/./data.pkl", b"x")), "name"),
    "no-name": (lambda: _added(Member("", b"x")), "name"),
    "name-not-utf-8": (lambda: _added(Member(b"archive/\xff\xfe", b"x")), "name"),
    "name-of-60000": (lambda: _added(Member("archive/" + "x" * 60_000, b"x")), ""),
    "directory-entry": (lambda: _added(Member("archive/data/")), ""),
    "two-pickles": (lambda: _added(Member("archive/data.pkl", _OTHER)), "two members"),
    "two-pickles-first": (lambda: archive([Member("archive/data.pkl", _OTHER), *_honest()]), "two members"),
    "two-storages": (lambda: _added(Member("archive/data/0", bytes(16))), "two members"),
    "two-versions": (lambda: _added(Member("archive/version", b"2\n")), "two members"),
    "two-roots": (lambda: archive([*_honest(), *writers.members(_OTHER, root="other")]), ""),
    "no-pickle": (lambda: archive(_honest()[1:]), ""),
    "no-members": (lambda: archive([]), ""),
    "local-name": (lambda: _patched("data.pkl", local={"name": b"archive/evil.pkl"}), "two names"),
    "local-name-longer": (lambda: _patched("data/0", local={"name": b"archive/data/0/"}), ""),
    "local-size": (lambda: _patched("data/0", flags=0x800, local={"size": 12}), "two ways"),
    "local-crc": (lambda: _patched("data/0", flags=0x800, local={"crc": 7}), "two ways"),
    "local-method": (lambda: _patched("data/0", local={"method": 8}), ""),
    "local-flags": (lambda: _patched("data/0", local={"flags": 0x809}), ""),
    "offset-of-another": (lambda: _patched("data/0", offset=0), ""),
    "offset-outside": (lambda: _patched("data/0", offset=2**31), ""),
    "offset-in-directory": (lambda: _patched("data/0", offset=1100), ""),
    "size-packed-differs": (lambda: _patched("data/0", packed=12), ""),
    "size-larger": (lambda: _patched("data/0", size=17, packed=17), ""),
    "size-smaller": (lambda: _patched("data/0", size=12, packed=12), ""),
    "size-past-end": (lambda: _patched("data/0", size=2**31, packed=2**31), ""),
    "size-of-1-tb": (lambda: _patched("data/0", size=2**32 - 1, packed=2**32 - 1, extra=_ZIP64), ""),
    "size-64-missing": (lambda: _patched("data/0", size=2**32 - 1, packed=2**32 - 1), ""),
    "size-64-cut": (lambda: _patched("data/0", size=2**32 - 1, packed=2**32 - 1, extra=_ZIP64[:8]), ""),
    "crc-of-pickle": (lambda: _patched("data.pkl", crc=7), "checksum"),
    "crc-of-both": (lambda: _patched("data.pkl", crc=7, flags=0x800), "checksum"),
    "encrypted": (lambda: _patched("data/0", flags=0x809), "encrypted"),
    "encrypted-strongly": (lambda: _patched("data/0", flags=0x849), "encrypted"),
    "flag-20": (lambda: _patched("data.pkl", flags=0x828), ""),
    "flag-40": (lambda: _patched("data.pkl", flags=0x848), ""),
    "flag-2000": (lambda: _patched("data.pkl", flags=0x2808), ""),
    "flag-20-only-told": (lambda: _patched("data.pkl", flags=0x828, local={"flags": 0x808}), ""),
    "deflated-pickle": (lambda: _squeezed("data.pkl", 8, _deflated(_PICKLE), _PICKLE), "compressed"),
    "deflated-storage": (lambda: _squeezed("data/0", 8, _deflated(writers.FOUR), writers.FOUR), "compressed"),
    "method-bzip2": (lambda: _patched("data/0", method=12), "compressed"),
    "method-lzma": (lambda: _patched("data/0", method=14), "compressed"),
    "method-aes": (lambda: _patched("data/0", method=99), "compressed"),
    "bomb-storage": (lambda: _bomb("data/0"), "compressed"),
    "bomb-pickle": (lambda: _bomb("data.pkl"), "compressed"),
    "symlink": (lambda: _added(Member("archive/data/1", b"/etc/passwd", attributes=_SYMLINK)), "link"),
    "symlink-for-storage": (lambda: _patched("data/0", attributes=_SYMLINK), "link"),
    "overlapping": (_overlapping, ""),
    "quoted-members": (_quoted, ""),
    "prefix": (lambda: archive(_honest(), prefix=b"#!/bin/sh\necho hello\nexit\n"), ""),
    "prefix-uncounted": (lambda: b"#!/bin/sh\nexit\n" + archive(_honest()), ""),
    "prefix-of-exe": (lambda: archive(_honest(), prefix=b"MZ" + bytes(510)), ""),
    "prefix-of-png": (lambda: archive(_honest(), prefix=b"\x89PNG\r\n\x1a\n" + bytes(50)), ""),
    "prefix-of-pickle": (lambda: archive(_honest(), prefix=op.pickled(op.call("posix.system", op.text("id")))), ""),
    "prefix-of-safetensors": (lambda: archive(_honest(), prefix=writers.safetensors({"w": writers.described()})), ""),
    "suffix": (lambda: archive(_honest()) + b"\0" * 8, ""),
    "suffix-of-pickle": (lambda: archive(_honest()) + _OTHER, ""),
    "suffix-of-archive": (lambda: archive(_honest()) + archive(writers.members(_OTHER)), ""),
    "suffix-of-end": (lambda: archive(_honest()) + archive(_honest())[-22:], ""),
    "suffix-of-ends": (lambda: archive(_honest()) + archive(_honest())[-42:], ""),
    "between-the-ends": (lambda: archive(_honest())[:-42] + b"x" * 100 + archive(_honest())[-42:], ""),
    "archive-in-comment": (lambda: archive(_honest(), end=End(comment=archive(writers.members(_OTHER)))), ""),
    "end-in-comment": (lambda: archive(_honest(), end=End(comment=b"PK\x05\x06" + bytes(18))), ""),
    "comment-longer": (lambda: archive(_honest(), end=End(comment=b"x", comment_length=9)), ""),
    "comment-shorter": (lambda: archive(_honest(), end=End(comment=b"xx", comment_length=-1)), ""),
    "counts-fewer": (lambda: archive(_honest(), end=End(count=-1)), ""),
    "counts-more": (lambda: archive(_honest(), end=End(count=1)), ""),
    "counts-a-million": (lambda: archive(_honest(), end=End(count=10**6)), "members"),
    "counts-2-to-60": (lambda: archive(_honest(), end=End(count=2**60)), "members"),
    "directory-short": (lambda: archive(_honest(), end=End(length=-8)), ""),
    "directory-long": (lambda: archive(_honest(), end=End(length=8)), ""),
    "directory-elsewhere": (lambda: archive(_honest(), end=End(start=-46)), ""),
    "directory-outside": (lambda: archive(_honest(), end=End(start=2**30)), ""),
    "other-disk": (lambda: archive(_honest(), end=End(disk=1)), ""),
    "other-disk-32": (lambda: archive(_honest(), end=End(disk=1, wide=False)), ""),
    "wide-count-differs": (lambda: archive(_honest(), end=End(wide_count=3)), ""),
    "wide-start-differs": (lambda: archive(_honest(), end=End(wide_start=0)), ""),
    "wide-start-outside": (lambda: archive(_honest(), end=End(wide_start=2**62)), ""),
    "locator-outside": (lambda: archive(_honest(), end=End(locator=2**40)), ""),
    "locator-negative": (lambda: archive(_honest(), end=End(locator=-(2**20))), ""),
    "two-directories": (_second_directory, ""),
    "no-directory": (lambda: archive(_honest()).replace(b"PK\x01\x02", b"PK\x01\x03"), ""),
    "no-local-headers": (lambda: b"PK\x03\x04" + archive(_honest())[4:].replace(b"PK\x03\x04", b"PK\x03\x05"), ""),
    "byteorder-mixed": (lambda: _patched("byteorder", data=b"mixed"), "byte"),
    "byteorder-of-code": (lambda: _patched("byteorder", data=_OTHER), "byte"),
    "empty-pickle": (lambda: archive(writers.members(b"")), ""),
    "nested-archive": (lambda: archive(writers.members(archive(_honest()))), ""),
}

#: Archives that are strange, but mean one thing.
STRANGE: dict[str, tuple[Callable[[], bytes], str]] = {
    "honest": (lambda: archive(_honest()), "inert"),
    "honest-32-bit": (lambda: archive(_honest(), end=End(wide=False)), "inert"),
    "honest-without-descriptors": (
        lambda: archive([Member(m.name, m.data, flags=0x800) for m in _honest()]),
        "inert",
    ),
    "archive-in-member": (lambda: _added(Member("archive/data/1", archive(_honest()))), "inert|refused"),
    "escape-in-name": (lambda: _added(Member("archive/\x1b[2J\n", b"x")), "inert|refused"),
    "no-root": (
        lambda: archive([Member(str(m.name).removeprefix("archive/"), m.data) for m in _honest()]),
        "inert|refused",
    ),
    "comment": (lambda: archive(_honest(), end=End(comment=b"\x1b[2J</script>")), "inert|refused"),
    "storage-nobody-uses": (lambda: _added(Member("archive/data/1", b"x" * 100)), "inert|refused"),
    "extra-pickle": (lambda: _added(Member("archive/evil.pkl", _OTHER)), "inert|refused"),
    "two-pickles-by-case": (lambda: _added(Member("archive/Data.pkl", _OTHER)), "inert|refused"),
    "version-of-text": (lambda: _patched("/version", data=b"\x1b[2J"), "inert|refused"),
    "version-of-code": (lambda: _patched("/version", data=_OTHER), "inert|refused"),
    "no-byteorder": (lambda: archive([m for m in _honest() if "byteorder" not in str(m.name)]), "inert"),
    "byteorder-big": (lambda: _patched("byteorder", data=b"big"), "inert"),
    "crc-of-storage": (lambda: _patched("data/0", crc=7), "inert|refused|unreadable"),
}


def entries() -> Iterator[Entry]:
    for label, (build, says) in BROKEN.items():
        yield Entry(f"zip-{label}.pt", _constant(build), "refused", says, heavy=label.startswith("bomb"))
    for label, (build, expected) in STRANGE.items():
        yield Entry(f"zip-{label}.pt", _constant(build), expected)
    yield Entry("zip-of-151000-members.pt", lambda trap: _crowd(151_000), "refused", "members", heavy=True)
    yield Entry("zip-of-100000-members.pt", lambda trap: _crowd(100_000), "refused|inert", heavy=True)


def _constant(build: Callable[[], bytes]) -> Callable[[Trap], bytes]:
    return lambda trap: build()


def _crowd(count: int) -> bytes:
    return archive([*_honest(), *(Member(f"archive/data/{n}", flags=0x800) for n in range(1, count))])
