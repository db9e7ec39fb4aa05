"""Pickles that abuse what reads them: broken opcodes, impossible operations, lengths that lie."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from tests.checkpoint.reader import opcodes as op
from tests.checkpoint.reader import writers
from tests.checkpoint.reader.corpus import Entry, Trap

_NAME = op.name("argparse.Namespace")
_OBJECT = op.call(_NAME)

#: Values that no pickler writes, and what the reader must do: a call of what can't be called is harmless as a label,
#: an operation without a meaning isn't.
ODD: dict[str, tuple[bytes, str]] = {
    "call-a-list": (op.listing() + op.EMPTY_TUPLE + op.REDUCE, "refused|inert"),
    "call-a-number": (op.call(op.number(7)), "refused|inert"),
    "call-text": (op.call(op.text("posix.system"), op.text("id")), "refused|inert"),
    "call-a-tensor": (op.call(op.vector()), "refused|inert"),
    "call-a-result": (op.call(_OBJECT), "inert"),
    "arguments-in-a-list": (_NAME + op.listing(op.number(1)) + op.REDUCE, "refused"),
    "arguments-in-a-dictionary": (_NAME + op.EMPTY_DICT + op.REDUCE, "refused"),
    "new-of-text": (op.text("os") + op.EMPTY_TUPLE + op.NEWOBJ, "refused|inert"),
    "new-without-tuple": (_NAME + op.NONE + op.NEWOBJ, "refused"),
    "new-with-keywords": (_NAME + op.EMPTY_TUPLE + op.named(a=op.TRUE) + op.NEWOBJ_EX, "inert"),
    "new-with-list-as-keywords": (_NAME + op.EMPTY_TUPLE + op.EMPTY_LIST + op.NEWOBJ_EX, "refused|inert"),
    "object-of-text": (op.MARK + op.text("os") + op.OBJ, "refused|inert"),
    "object-of-nothing": (op.MARK + op.OBJ, "refused"),
    "name-of-numbers": (op.number(1) + op.number(2) + b"\x93", "refused"),
    "name-of-names": (_NAME + op.text("x") + b"\x93", "refused"),
    "state-on-a-name": (op.name("posix.system") + op.named(__class__=op.TRUE) + op.BUILD, "refused|inert"),
    "state-on-a-torch-function": (
        op.name("torch._utils._rebuild_tensor_v2") + op.named(__code__=op.NONE) + op.BUILD,
        "refused|inert",
    ),
    "state-on-a-list": (op.EMPTY_LIST + op.named(append=op.NONE) + op.BUILD, "refused"),
    "state-on-a-dictionary": (op.EMPTY_DICT + op.named(keys=op.NONE) + op.BUILD, "refused|inert"),
    "state-on-text": (op.text("x") + op.named(a=op.NONE) + op.BUILD, "refused"),
    "state-on-a-tensor": (
        op.vector() + op.named(_storage=op.NONE, data=op.NONE) + op.BUILD,
        "refused|inert|unreadable",
    ),
    "state-of-slots": (_OBJECT + op.sequence(op.NONE, op.named(__dict__=op.NONE)) + op.BUILD, "inert"),
    "state-of-class": (_OBJECT + op.named(__class__=op.name("posix.system"), __dict__=op.NONE) + op.BUILD, "inert"),
    "state-of-setstate": (_OBJECT + op.named(__setstate__=op.name("builtins.eval")) + op.BUILD, "inert"),
    "state-twice": (_OBJECT + op.named(a=op.TRUE) + op.BUILD + op.named(a=op.FALSE) + op.BUILD, "refused|inert"),
    "state-with-odd-keys": (_OBJECT + op.mapping([(op.number(1), op.NONE), (op.NONE, op.NONE)]) + op.BUILD, "inert"),
    "ordered-dict-with-keys": (
        op.call("collections.OrderedDict") + op.text("w") + op.TRUE + b"s" + op.named(keys=op.NONE) + op.BUILD,
        "inert",
    ),
    "append-to-a-tuple": (op.EMPTY_TUPLE + op.NONE + b"a", "refused"),
    "append-to-text": (op.text("x") + op.NONE + b"a", "refused"),
    "append-to-a-name": (op.name("sys.path") + op.text("/x") + b"a", "refused"),
    "append-to-a-tensor": (op.vector() + op.NONE + b"a", "refused"),
    "extend-a-name": (op.name("sys.path") + op.MARK + op.text("/x") + b"e", "refused"),
    "set-item-of-a-list": (op.listing(op.NONE) + op.number(0) + op.TRUE + b"s", "refused"),
    "set-item-of-a-tensor": (op.vector() + op.number(10**6) + op.real(1.0) + b"s", "refused"),
    "set-item-of-a-name": (op.name("os.environ") + op.text("PATH") + op.text(".") + b"s", "refused"),
    "set-odd-items": (b"}(" + op.text("a") + b"u", "refused"),
    "add-to-a-list": (op.EMPTY_LIST + op.MARK + op.NONE + b"\x90", "refused"),
    "list-as-key": (op.mapping([(op.EMPTY_LIST, op.NONE)]), "refused"),
    "dictionary-as-key": (op.mapping([(op.EMPTY_DICT, op.NONE)]), "refused"),
    "list-in-a-tuple-as-key": (op.mapping([(op.sequence(op.EMPTY_LIST), op.NONE)]), "refused"),
    "list-in-a-set": (op.EMPTY_SET + op.MARK + op.EMPTY_LIST + b"\x90", "refused"),
    "list-in-a-frozen-set": (op.MARK + op.EMPTY_LIST + b"\x91", "refused"),
    "tensor-as-key": (op.mapping([(op.vector(), op.NONE)]), "refused|inert"),
    "nan-as-key": (op.mapping([(op.real(float("nan")), op.NONE)] * 2), "inert"),
    "extension-0": (b"\x82\x00", "refused|inert"),
    "extension-of-nothing": (b"\x82\x01", "refused|inert"),
    "extension-of-nothing-2": (b"\x83\x01\x00", "refused|inert"),
    "extension-of-nothing-4": (b"\x84\x01\x00\x00\x00", "refused|inert"),
    "extension-negative": (b"\x84\xff\xff\xff\xff", "refused|inert"),
    "persistent-text": (b"Pposix.system\n", "refused"),
    "persistent-number": (op.number(7) + b"Q", "refused"),
    "persistent-dictionary": (op.named(storage=op.NONE) + b"Q", "refused"),
    "persistent-none": (op.NONE + b"Q", "refused"),
    "persistent-short": (op.sequence(op.text("storage")) + b"Q", "refused"),
    "persistent-module": (
        op.sequence(op.text("module"), op.name("os.system"), op.text("x.py"), op.text("import os")) + b"Q",
        "refused",
    ),
    "persistent-twice": (op.storage(op.text("0"), 4) + b"Q", "refused"),
    "persistent-long": (op.sequence(op.text("storage"), *[op.NONE] * 10_000) + b"Q", "refused"),
    "next-buffer": (b"\x97", "refused"),
    "readonly-buffer": (op.octets(b"x") + b"\x98", "refused"),
    "memo-missing": (b"h\x07", "refused"),
    "memo-missing-long": (b"j\xff\xff\xff\xff", "refused"),
    "memo-negative": (op.NONE + b"p-1\n", "refused|inert"),
    "memo-of-letters": (op.NONE + b"pabc\n", "refused"),
    "memo-huge-text": (op.NONE + b"p" + b"9" * 1000 + b"\n", "refused|inert"),
    "pop-mark-without-mark": (b"N1", "refused"),
    "tuple-without-mark": (b"t", "refused"),
    "tuple-of-too-few": (b"\x87", "refused"),
    "mark-left": (b"(N", "refused|inert"),
    "two-values": (b"NN", "refused|inert"),
    "mark-as-value": (b"(", "refused"),
    "unknown-opcode": (b"\xff", "refused"),
    "opcode-zero": (b"\x00", "refused"),
    "protocol-again-77": (b"N\x80\x4d", "refused"),
    "int-of-letters": (b"Iposix\n", "refused"),
    "int-of-underscores": (b"I1_000\n", "refused|inert"),
    "int-of-arabic-digits": ("I١٢\n".encode(), "refused|inert"),
    "int-without-newline": (b"I" + b"1" * 50, "refused"),
    "long-of-nothing": (b"L\n", "refused|inert"),
    "float-of-letters": (b"Fposix\n", "refused"),
    "float-huge": (b"F1e999\n", "refused|inert"),
    "string-unquoted": (b"Sposix\n", "refused"),
    "string-half-quoted": (b"S'posix\n", "refused"),
    "string-bad-escape": (b"S'\\x'\n", "refused|inert"),
    "string-not-ascii": (b"U\x02\xff\xfe", "refused|inert"),
    "unicode-bad-escape": (b"V\\u12\n", "refused"),
    "text-not-utf-8": (b"X\x02\x00\x00\x00\xff\xfe", "refused"),
    "text-of-a-surrogate": (op.text("\ud800"), "inert"),
    "text-of-escapes": (op.text("\x1b[2J\x00\u202e</script>"), "inert"),
    "name-without-newline": (b"cposix", "refused"),
    "name-of-escapes": (b"c\x1b[2J\nx\x07\n", "refused|inert"),
    "name-not-utf-8": (b"c\xff\xfe\nx\n", "refused"),
    "name-of-a-megabyte": (b"c" + b"x" * 10**6 + b"\ny\n", "refused|inert"),
    "text-past-the-end": (b"X\xff\xff\xff\x7f", "refused"),
    "text-8-past-the-end": (b"\x8d" + b"\xff" * 7 + b"\x7f", "refused"),
    "text-8-negative": (b"\x8d" + b"\xff" * 8, "refused"),
    "bytes-past-the-end": (b"B\xff\xff\xff\xff", "refused"),
    "bytes-8-past-the-end": (b"\x8e" + struct.pack("<Q", 2**40), "refused"),
    "string-past-the-end": (b"T\xff\xff\xff\x7f", "refused"),
    "string-negative": (b"T\xff\xff\xff\xff", "refused"),
    "bytearray-of-5-gb": (b"\x96" + struct.pack("<Q", 5 * 10**9), "refused"),
    "long-4-past-the-end": (b"\x8b\xff\xff\xff\x7f", "refused"),
    "long-4-negative": (b"\x8b\xff\xff\xff\xff", "refused"),
    "memo-index-4e8": (b"Nr" + struct.pack("<I", 4 * 10**8), "inert"),
}

#: Whole pickles, for what stands before or behind the value.
WHOLE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "refused"),
    "only-protocol": (b"\x80\x02", "refused"),
    "only-stop": (b".", "refused"),
    "pop-nothing": (b"\x80\x020N.", "refused"),
    "duplicate-nothing": (b"\x80\x022.", "refused"),
    "append-to-nothing": (b"\x80\x02Na.", "refused"),
    "state-of-nothing": (b"\x80\x02Nb.", "refused"),
    "no-stop": (b"\x80\x02N", "refused"),
    "protocol-cut": (b"\x80", "refused"),
    "protocol-6": (op.pickled(op.NONE, 6), "refused"),
    "protocol-255": (op.pickled(op.NONE, 255), "refused"),
    "frame-of-1e11": (b"\x80\x04\x95" + struct.pack("<Q", 10**11) + b"N.", "refused"),
    "frame-too-short": (b"\x80\x04\x95" + struct.pack("<Q", 1) + b"X\x01\x00\x00\x00a.", "refused|inert"),
    "frame-in-a-frame": (
        b"\x80\x04\x95" + struct.pack("<Q", 11) + b"\x95" + struct.pack("<Q", 2) + b"N.",
        "refused|inert",
    ),
    "frame-cut": (b"\x80\x04\x95\x01\x00", "refused"),
}


def entries() -> Iterator[Entry]:
    for label, (value, expected) in ODD.items():
        yield Entry(f"odd-{label}.pt", _zip(value), expected)
    for label in ("call-a-list", "state-on-a-name", "persistent-text", "extension-of-nothing", "bytearray-of-5-gb"):
        value, expected = ODD[label]
        yield Entry(f"odd-{label}.pth", _legacy(value), expected)
        yield Entry(f"odd-{label}.pkl", _plain(value), expected)
    for label, (raw, expected) in WHOLE.items():
        yield Entry(f"pickle-{label}.pt", _member(raw), expected)


def _zip(value: bytes) -> Callable[[Trap], bytes]:
    return lambda trap: writers.zipped(op.named(w=op.vector(), extra=value))


def _legacy(value: bytes) -> Callable[[Trap], bytes]:
    return lambda trap: writers.legacy(op.named(w=op.legacy_vector(), extra=value))


def _plain(value: bytes) -> Callable[[Trap], bytes]:
    return lambda trap: op.pickled(op.named(extra=value))


def _member(raw: bytes) -> Callable[[Trap], bytes]:
    return lambda trap: writers.archive(writers.members(raw))
