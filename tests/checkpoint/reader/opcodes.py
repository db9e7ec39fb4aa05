"""Pickles written opcode by opcode: each function gives the bytes that leave one value on the stack.

Nothing is pickled by Python, so a value may lie about itself, and it means the same in every version.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

#: A storage's class as torch.save names it, by the letter of `struct` for its elements.
STORAGES = {"f": "FloatStorage", "d": "DoubleStorage", "q": "LongStorage", "i": "IntStorage", "B": "ByteStorage"}

NONE, TRUE, FALSE = b"N", b"\x88", b"\x89"
EMPTY_DICT, EMPTY_LIST, EMPTY_TUPLE, EMPTY_SET = b"}", b"]", b")", b"\x8f"
MARK, POP, DUP, STOP, MEMOIZE = b"(", b"0", b"2", b".", b"\x94"
REDUCE, BUILD, NEWOBJ, NEWOBJ_EX, OBJ = b"R", b"b", b"\x81", b"\x92", b"o"


def pickled(value: bytes, protocol: int = 2) -> bytes:
    """A whole pickle of one value."""
    return b"\x80" + bytes([protocol]) + value + STOP


def number(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    digits = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(digits)]) + digits


def real(value: float) -> bytes:
    return b"G" + struct.pack(">d", value)


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def octets(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def sequence(*values: bytes) -> bytes:
    return MARK + b"".join(values) + b"t"


def listing(*values: bytes) -> bytes:
    return b"](" + b"".join(values) + b"e"


def mapping(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"}(" + b"".join(key + value for key, value in pairs) + b"u"


def named(**values: bytes) -> bytes:
    """A dictionary with text keys."""
    return mapping((text(key), value) for key, value in values.items())


def name(dotted: str) -> bytes:
    """The global `module.name` as GLOBAL writes it; the last dot parts them."""
    module, _, last = dotted.rpartition(".")
    return b"c" + module.encode() + b"\n" + last.encode() + b"\n"


def stack_name(module: str, last: str) -> bytes:
    return text(module) + text(last) + b"\x93"


def call(function: bytes | str, *args: bytes) -> bytes:
    """`function(*args)`, by REDUCE."""
    return (name(function) if isinstance(function, str) else function) + sequence(*args) + REDUCE


def storage(key: bytes, numel: int, *, kind: str = "torch.FloatStorage", place: str = "cpu") -> bytes:
    """The persistent id of a storage, as a zip file names it."""
    return sequence(text("storage"), name(kind), key, text(place), number(numel)) + b"Q"


def legacy_storage(key: str, numel: int, *, kind: str = "torch.FloatStorage", view: bytes = NONE) -> bytes:
    return sequence(text("storage"), name(kind), text(key), text("cpu"), number(numel), view) + b"Q"


def sizes(values: Iterable[int]) -> bytes:
    return sequence(*map(number, values))


def tensor(stored: bytes, shape: bytes, stride: bytes, start: bytes | None = None) -> bytes:
    """A call of the function with which torch rebuilds a tensor out of its storage."""
    hooks = call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v2", stored, start or number(0), shape, stride, FALSE, hooks)


def vector(numel: int = 4, key: str = "0") -> bytes:
    """An honest float tensor of one dimension which is its whole storage."""
    return tensor(storage(text(key), numel), sizes([numel]), sizes([1]))


def legacy_vector(numel: int = 4, key: str = "0") -> bytes:
    return tensor(legacy_storage(key, numel), sizes([numel]), sizes([1]))
