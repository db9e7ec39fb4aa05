"""Small files of large cost: in memory, in time, in depth."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.checkpoint.reader import opcodes as op
from tests.checkpoint.reader import writers
from tests.checkpoint.reader.corpus import Entry, Trap
from tests.checkpoint.reader.writers import Member, archive

_MILLION = 10**6
_TEN_MB = 9_900_000
_HASH = 2**61 - 1
_LARGE = 280_000_000


def _bomb(levels: int = 30, width: int = 10) -> bytes:
    """A list of ten times the same list of ten times the same list …"""
    body = op.EMPTY_LIST + b"q\x00"
    for level in range(levels):
        body += op.POP + b"](" + (b"h" + bytes([level])) * width + b"e"
        body += b"q" + bytes([level + 1])
    return body


def _repeated(unit: bytes, size: int, before: bytes = b"N", behind: bytes = b"") -> bytes:
    """`unit` until the pickle has `size` bytes."""
    return before + unit * ((size - len(before) - len(behind)) // len(unit)) + behind


def _colliding(count: int) -> bytes:
    """Keys whose hashes are equal: multiples of the prime that Python takes integers by."""
    return op.mapping((op.number(n * _HASH), op.NONE) for n in range(1, count + 1))


def _colliding_tuples(count: int) -> bytes:
    return op.mapping((op.sequence(op.number(n * _HASH), op.NONE), op.NONE) for n in range(1, count + 1))


def _colliding_reals(count: int) -> bytes:
    return op.mapping((op.real(2.0 ** (61 * (n % 16)) * (1 + n // 16)), op.NONE) for n in range(count))


def _equal_keys(size: int, count: int) -> bytes:
    """One entry set again and again by a long key that is equal to its own, and not the same."""
    long = op.text("k" * size)
    return long + b"q\x00" + op.POP + op.EMPTY_DICT + long + b"Ns" + b"h\x00Ns" * count


def _long_names(size: int, count: int) -> bytes:
    """A long name made again and again out of two texts."""
    return op.text("m" * size) + b"q\x00" + op.POP + op.NONE + b"h\x00h\x00\x930" * count


def _deep_tuple(depth: int) -> bytes:
    return op.EMPTY_TUPLE + b"\x85" * depth


def _deep_call(depth: int) -> bytes:
    """A call of the function that calls a function, on itself."""
    function = op.name("torch._tensor._rebuild_from_type_v2")
    head = function + b"q\x00" + op.POP + op.NONE + b"q\x01" + op.POP
    return head + b"h\x00" + b"(h\x00h\x01" * depth + op.EMPTY_TUPLE + b"Nt" * depth + op.REDUCE


def _array(shape: bytes) -> bytes:
    order = op.sequence(op.number(3), op.text("<"), *[op.NONE] * 3, *[op.number(-1)] * 2, op.number(0))
    dtype = op.call("numpy.dtype", op.text("f4"), op.FALSE, op.TRUE) + order + op.BUILD
    made = op.call("numpy._core.multiarray._reconstruct", op.name("numpy.ndarray"), op.sizes([0]), op.octets(b"b"))
    return made + op.sequence(op.number(1), shape, dtype, op.FALSE, op.octets(bytes(16))) + op.BUILD


def _long(digits: int) -> bytes:
    """An integer of so many bytes."""
    return b"\x8b" + struct.pack("<i", digits) + b"\x7f" * digits


#: Values of small files, and what the reader must make of them.
VALUES: dict[str, tuple[Callable[[], bytes], str]] = {
    "bytearray-call": (lambda: op.call("builtins.bytearray", op.number(10**13)), "refused|inert"),
    "bytes-call": (lambda: op.call("builtins.bytes", op.number(10**13)), "refused|inert"),
    "tensor-call": (lambda: op.call("torch.Tensor", op.number(10**13)), "inert"),
    "range-list": (lambda: op.call("builtins.list", op.call("builtins.range", op.number(10**13))), "refused|inert"),
    "list-times": (lambda: op.call("operator.mul", op.listing(op.NONE), op.number(10**13)), "inert"),
    "power": (lambda: op.call("operator.pow", op.number(9), op.number(10**9)), "inert"),
    "zeros-call": (lambda: op.call("numpy.zeros", op.number(10**13)), "inert"),
    "nested-lists": (_bomb, "inert"),
    "nested-lists-as-device": (lambda: op.call("torch.device", _bomb()), "refused|inert"),
    "nested-lists-as-complex": (lambda: op.call("builtins.complex", _bomb()), "refused|inert"),
    "nested-lists-as-path": (lambda: op.call("pathlib.PosixPath", _bomb()), "refused|inert"),
    "nested-lists-as-shape": (lambda: op.tensor(op.storage(op.text("0"), 4), _bomb(), _bomb()), "refused|unreadable"),
    "nested-lists-as-storage": (lambda: op.sequence(op.text("storage"), _bomb(), *[_bomb()] * 3) + b"Q", "refused"),
    "nested-tuples-as-key": (lambda: op.mapping([(_pairs(40), op.NONE)]), "refused|inert"),
    "list-in-itself": (lambda: b"]q\x00h\x00a", "inert"),
    "dictionary-in-itself": (lambda: b"}q\x00" + op.text("a") + b"h\x00s", "inert"),
    "state-of-itself": (lambda: op.call("argparse.Namespace") + b"q\x00}" + op.text("a") + b"h\x00sb", "inert"),
    "tuple-in-its-list": (lambda: b"]q\x00h\x00\x85a", "inert"),
    "list-deep-800": (lambda: b"]" * 800 + b"a" * 799, "refused|inert"),
    "list-deep-200000": (lambda: b"]" * 200_000 + b"a" * 199_999, "refused|inert"),
    "tuple-deep-200000": (lambda: _deep_tuple(200_000), "refused|inert"),
    "tuple-deep-999-as-key": (lambda: op.mapping([(_deep_tuple(990), op.NONE)]), "refused"),
    "tuple-deep-200000-as-key": (lambda: op.mapping([(_deep_tuple(200_000), op.NONE)]), "refused"),
    "tuple-deep-in-a-set": (lambda: op.EMPTY_SET + op.MARK + _deep_tuple(990) + b"\x90", "refused"),
    "call-deep-400": (lambda: _deep_call(400), "refused|inert"),
    "call-deep-50000": (lambda: _deep_call(50_000), "refused|inert"),
    "reduce-deep-100000": (lambda: b"cx\ny\nq\x00)" + b"R)" * 100_000 + b"R", "refused|inert"),
    "state-deep-100000": (lambda: op.call("argparse.Namespace") + b"Nb" * 100_000, "refused|inert"),
    "state-pairs-100000": (lambda: op.call("argparse.Namespace") + b"}b" * 100_000, "refused|inert"),
    "int-of-100000-digits": (lambda: b"I" + b"9" * 100_000 + b"\n", "refused"),
    "long-of-100000-digits": (lambda: b"L" + b"9" * 100_000 + b"L\n", "refused"),
    "long-of-300-digits": (lambda: b"L" + b"9" * 300 + b"L\n", "inert"),
    "integer-of-a-megabyte": (lambda: _long(_MILLION), "refused"),
    "real-of-a-million-digits": (lambda: b"F" + b"9" * (_MILLION - 10) + b"\n", "refused|inert"),
    "colliding-integers": (lambda: _colliding(30_000), "refused"),
    "colliding-tuples": (lambda: _colliding_tuples(30_000), "refused"),
    "colliding-reals": (lambda: _colliding_reals(30_000), "refused|inert"),
    "colliding-in-a-set": (
        lambda: op.EMPTY_SET + op.MARK + b"".join(op.number(n * _HASH) for n in range(1, 30_000)) + b"\x90",
        "refused",
    ),
    "colliding-in-state": (lambda: op.call("argparse.Namespace") + _colliding(30_000) + op.BUILD, "refused"),
    "colliding-in-counter": (
        lambda: op.call(
            "collections.OrderedDict", op.listing(*(op.sequence(op.number(n * _HASH), op.NONE) for n in range(30_000)))
        ),
        "refused",
    ),
    "equal-keys-of-megabytes": (lambda: _equal_keys(4 * _MILLION, 150_000), "refused|inert"),
    "names-of-megabytes": (lambda: _long_names(2 * _MILLION, 100_000), "refused|inert"),
    "text-shape-times-1e10": (lambda: _array(op.sequence(op.number(10**10), op.text("x"))), "refused"),
    "list-shape-times-1e10": (lambda: _array(op.sequence(op.number(10**10), op.listing(op.NONE))), "refused"),
    "bytes-shape-times-1e10": (lambda: _array(op.sequence(op.number(10**10), op.octets(b"x"))), "refused"),
    "shape-of-huge-integers": (
        lambda: _array(_long(1000) + b"q\x00" + op.POP + op.MARK + b"h\x00" * 100_000 + b"t"),
        "refused",
    ),
    "unread-megabytes": (lambda: op.text("x" * 4 * _MILLION), "inert|refused"),
    "text-copied": (
        lambda: (
            op.text("x" * _MILLION)
            + b"q\x00"
            + op.POP
            + op.listing(*[op.name("_codecs.encode") + b"h\x00\x85R"] * 10_000)
        ),
        "refused",
    ),
    "path-copied": (
        lambda: op.text("x" * _MILLION) + b"q\x00" + op.POP + op.call("pathlib.PosixPath", b"h\x00" * 10_000),
        "refused",
    ),
    "list-copied": (
        lambda: (
            op.listing(*[op.NONE] * 100_000)
            + b"q\x00"
            + op.POP
            + op.listing(*[op.name("builtins.list") + b"h\x00\x85R"] * 10_000)
        ),
        "refused",
    ),
}


def _pairs(levels: int) -> bytes:
    """A tuple of twice the same tuple of twice the same tuple …"""
    return op.EMPTY_TUPLE + b"2\x86" * levels


#: Ten megabytes of a few opcodes each.
CROWDS: dict[str, bytes] = {
    "list-pop": b"]0",
    "dictionary-pop": b"}0",
    "set-pop": b"\x8f0",
    "empty-sets": b"\x8f",
    "empty-lists": b"]",
    "empty-tuples": b")",
    "nones": b"N",
    "marks": b"(",
    "mark-pop-mark": b"(1",
    "memoize": b"\x94",
    "put": b"q\x00",
    "duplicates": b"2",
    "duplicate-append": b"]2a0",
    "tuples": b"\x85",
    "integers": b"K\x01",
    "long-integers": b"\x8a\x08\x01\x02\x03\x04\x05\x06\x07\x08",
    "texts": b"\x8c\x01a",
    "names": b"ca\nb\n",
    "calls": b"ca\nb\n)R",
    "instances": b"(ia\nb\n",
    "frames": b"\x95\0\0\0\0\0\0\0\0",
    "protocols": b"\x80\x04",
}


def entries() -> Iterator[Entry]:
    return (replace(entry, heavy=True) for entry in _entries())


def _entries() -> Iterator[Entry]:
    for label, (build, expected) in VALUES.items():
        yield Entry(f"bomb-{label}.pt", _zip(build), expected)
    for label in (
        "nested-lists",
        "list-in-itself",
        "nested-lists-as-device",
        "call-deep-50000",
        "tuple-deep-999-as-key",
    ):
        build, expected = VALUES[label]
        yield Entry(f"bomb-{label}.pth", _legacy(build), expected)
        yield Entry(f"bomb-{label}.pkl", _plain(build), expected)
    for label, unit in CROWDS.items():
        yield Entry(f"crowd-{label}.pt", _crowd(unit), "refused")
    for label in ("list-pop", "nones", "memoize", "calls"):
        yield Entry(f"crowd-{label}.pkl", _plain_crowd(CROWDS[label]), "refused")
    for part in ("version", "system", "keys"):
        yield Entry(f"bomb-is-{part}.pth", _in_part(part), "refused|inert")
    yield Entry("work-in-all-five.pth", lambda trap: _five_times(), "refused")
    yield Entry("work-by-members.pt", lambda trap: _by_members(), "refused")
    yield Entry("members-without-pickle.pt", lambda trap: _without_pickle(), "refused")
    for suffix in (".pt", ".pth", ".safetensors"):
        yield Entry(f"large{suffix}", _large, "inert")
    yield Entry("deep-3-million.pt", _zip(lambda: b"]" * 3 * _MILLION + b"a" * (3 * _MILLION - 1)), "refused")
    yield Entry(
        "deep-3-million-dictionaries.pt", _zip(lambda: b"}N" * 3 * _MILLION + b"}" + b"s" * 3 * _MILLION), "refused"
    )


def _large(trap: Trap) -> None:
    """280 MB of weights, of which a second copy would be seen."""
    raw = writers.FOUR * (_LARGE // len(writers.FOUR))
    if trap.path.suffix == ".pt":
        data = writers.zipped(op.named(w=op.vector(_LARGE // 4)), {"0": raw})
    elif trap.path.suffix == ".pth":
        data = writers.legacy(op.named(w=op.legacy_vector(_LARGE // 4)), {"0": (_LARGE // 4, raw)})
    else:
        data = writers.safetensors({"w": writers.described(0, _LARGE, [_LARGE // 4])}, raw)
    trap.path.write_bytes(data)


def _zip(build: Callable[[], bytes]) -> Callable[[Trap], bytes]:
    return lambda trap: writers.zipped(op.named(extra=build(), w=op.vector()))


def _legacy(build: Callable[[], bytes]) -> Callable[[Trap], bytes]:
    return lambda trap: writers.legacy(op.named(extra=build(), w=op.legacy_vector()))


def _plain(build: Callable[[], bytes]) -> Callable[[Trap], bytes]:
    return lambda trap: op.pickled(op.named(extra=build()))


def _crowd(unit: bytes) -> Callable[[Trap], bytes]:
    return lambda trap: writers.zipped(_repeated(unit, _TEN_MB))


def _plain_crowd(unit: bytes) -> Callable[[Trap], bytes]:
    return lambda trap: op.pickled(_repeated(unit, _TEN_MB))


def _in_part(part: str) -> Callable[[Trap], bytes]:
    return lambda trap: writers.legacy(op.named(w=op.legacy_vector()), **{part: op.pickled(_bomb())})


def _five_times() -> bytes:
    """As much work as one pickle may make, in each of the five of a legacy file."""
    work = b"N0" * 290_000
    value = op.named(w=op.legacy_vector())
    honest = writers.legacy(value)
    parts = []
    for pickle in honest.split(b"\x80\x02")[1:]:
        parts.append(b"\x80\x02" + work + pickle)
    return b"".join(parts) + b"x"


def _by_members() -> bytes:
    """Many empty storages, each of which allows for a little more work, and a pickle that makes use of it."""
    storages = {str(n): b"" for n in range(26_000)}
    return archive(writers.members(op.pickled(b"N0" * 2_400_000 + b"NN"), storages))


def _without_pickle() -> bytes:
    return archive([Member(f"archive/data/{n}", flags=0x800) for n in range(52_000)])
