"""Safetensors files whose headers lie."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator

from tests.checkpoint.reader.corpus import Entry, constant
from tests.checkpoint.reader.writers import FOUR, described, safetensors

_ONE = {"w": described()}


def _pair(first: tuple[int, int], second: tuple[int, int]) -> bytes:
    both = {
        "a": described(*first, shape=[(first[1] - first[0]) // 4]),
        "b": described(*second, shape=[(second[1] - second[0]) // 4]),
    }
    return safetensors(both, FOUR * 2)


#: Headers by what is wrong with them.
LIES: dict[str, bytes] = {
    "shorter-than-8": b"\x08\0\0",
    "length-0": struct.pack("<Q", 0),
    "length-past-end": safetensors(_ONE, length=10**6),
    "length-over-limit": safetensors(_ONE, length=10**8 + 1),
    "length-2-to-63": safetensors(_ONE, length=2**63),
    "length-cuts-json": safetensors(_ONE, length=20),
    "not-json": safetensors(b"{w: 1}"),
    "not-utf-8": safetensors(b'{"\xff\xfe":1}'),
    "utf-16": safetensors(json.dumps(_ONE).encode("utf-16")),
    "a-list": safetensors([_ONE]),
    "a-number": safetensors(b"7"),
    "nothing": safetensors(b""),
    "two-objects": safetensors(json.dumps(_ONE).encode() * 2),
    "same-name-twice": safetensors(
        b'{"w":%b,"w":%b}' % tuple(json.dumps(described(0, 16, s)).encode() for s in ([4], [2, 2]))
    ),
    "same-name-by-escape": safetensors(
        b'{"w":%b,"\\u0077":%b}' % tuple(json.dumps(described(0, 16, s)).encode() for s in ([4], [2, 2]))
    ),
    "overlap": _pair((0, 16), (8, 32)),
    "same-range": _pair((0, 16), (0, 16)),
    "hole": _pair((0, 12), (16, 32)),
    "starts-late": safetensors({"w": described(4, 20)}, FOUR * 2),
    "reversed": safetensors({"w": described(16, 0)}),
    "negative": safetensors({"w": described(-16, 0)}),
    "outside": safetensors({"w": described(0, 32, shape=[8])}),
    "wraps": safetensors({"w": described(2**64 - 16, 2**64)}),
    "one-byte-more": safetensors(_ONE, FOUR + b"x"),
    "one-byte-less": safetensors(_ONE, FOUR[:-1]),
    "shape-differs": safetensors({"w": described(shape=[5])}),
    "shape-negative": safetensors({"w": described(shape=[-4])}),
    "shape-wraps": safetensors({"w": described(shape=[2**62 + 1, 4])}),
    "shape-overflows": safetensors({"w": described(shape=[2**32, 2**32])}),
    "shape-of-reals": safetensors({"w": described(shape=[4.0])}),
    "shape-of-text": safetensors({"w": described(shape="4")}),
    "shape-missing": safetensors({"w": {"dtype": "F32", "data_offsets": [0, 16]}}),
    "dtype-unknown": safetensors({"w": described(dtype="F31")}),
    "dtype-of-code": safetensors({"w": described(dtype="os.system")}),
    "dtype-missing": safetensors({"w": {"shape": [4], "data_offsets": [0, 16]}}),
    "offsets-missing": safetensors({"w": {"dtype": "F32", "shape": [4]}}),
    "offsets-three": safetensors({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8, 16]}}),
    "tensor-a-number": safetensors({"w": 7}),
    "metadata-of-numbers": safetensors({"__metadata__": {"a": 1}, **_ONE}),
    "metadata-of-objects": safetensors({"__metadata__": {"a": {"b": "c"}}, **_ONE}),
    "metadata-a-list": safetensors({"__metadata__": ["a"], **_ONE}),
    "deep-100000": safetensors(b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "deep-objects": safetensors(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "metadata-deep": safetensors(b'{"__metadata__":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}"),
    "dtype-of-escapes": safetensors({"w": described(dtype="\x1b[2J\n\u202e")}),
    "dtype-of-a-megabyte": safetensors({"w": described(dtype="F" * 10**6)}),
    "name-of-escapes": safetensors({"\x1b[2J\n\u202e": described(0, 32, shape=[8])}),
    "name-of-a-megabyte": safetensors({"n" * 10**6: described(0, 32, shape=[8])}),
    "number-of-100000-digits": safetensors(
        b'{"w":{"dtype":"F32","shape":[' + b"9" * 100_000 + b'],"data_offsets":[0,16]}}'
    ),
}

#: Headers that are odd but mean one thing.
ODD: dict[str, tuple[bytes, str]] = {
    "honest": (safetensors(_ONE), "inert"),
    "blanks-before": (safetensors(b"   " + json.dumps(_ONE).encode()), "inert|refused"),
    "blanks-behind": (safetensors(json.dumps(_ONE).encode() + b"   "), "inert"),
    "empty-of-2-to-62": (safetensors({"w": described(0, 0, shape=[2**62, 0])}, b""), "inert|refused|unreadable"),
    "more-fields": (safetensors({"w": {**described(), "x": [1]}}), "inert|refused"),
    "names": (
        safetensors(
            {
                "../../x": described(0, 4, [1]),
                "\x1b[2J</script>": described(4, 8, [1]),
                "": described(8, 12, [1]),
                "\u202e\ud800": described(12, 16, [1]),
            }
        ),
        "inert|refused",
    ),
    "metadata-of-markup": (safetensors({"__metadata__": {"<script>": "\x1b[2J\0"}, **_ONE}), "inert"),
    "metadata-of-a-megabyte": (safetensors({"__metadata__": {"a": "x" * 10**6}, **_ONE}), "inert|refused"),
    "no-tensors": (safetensors({}, b""), "inert|refused"),
}


def entries() -> Iterator[Entry]:
    for label, data in LIES.items():
        yield Entry(f"header-{label}.safetensors", constant(data), "refused")
    for label, (data, expected) in ODD.items():
        yield Entry(f"header-{label}.safetensors", constant(data), expected)
    yield Entry("header-overlap.bin", constant(LIES["overlap"]), "refused")
    yield Entry("header-of-100000-tensors.safetensors", lambda trap: _crowd(100_000), "inert|refused", heavy=True)
    yield Entry(
        "header-of-100000-hidden.safetensors", lambda trap: _crowd(100_000, b"data\\u005foffsets"), "refused|inert"
    )
    more = b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16],"x":[' + b"[]," * 2_600_000 + b"0]}}"
    yield Entry("header-of-many-lists.safetensors", lambda trap: safetensors(more), "refused|inert", heavy=True)
    metadata = b'{"__metadata__":{' + b",".join(b'"%d":""' % n for n in range(700_000)) + b"}}"
    yield Entry(
        "header-of-700000-metadata.safetensors", lambda trap: safetensors(metadata, b""), "refused|inert", heavy=True
    )
    yield Entry("header-of-1000000-tensors.safetensors", lambda trap: _crowd(10**6), "refused", heavy=True)


def _crowd(count: int, key: bytes = b"data_offsets") -> bytes:
    one = b'"%d":{"dtype":"F32","shape":[0],"' + key + b'":[0,0]}'
    return safetensors(b"{" + b",".join(one % n for n in range(count)) + b"}", b"")
