"""Tensors and arrays that lie about their storage, their shape, or what they are."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from tests.checkpoint.reader import opcodes as op
from tests.checkpoint.reader import writers
from tests.checkpoint.reader.corpus import Entry, Trap, constant

_FOUR = op.storage(op.text("0"), 4)
_HOOKS = op.call("collections.OrderedDict")
_OUTSIDE = "outside"

#: Shape, stride and start of a float tensor on a storage of four elements.
GEOMETRY: dict[str, tuple[list[int], list[int], int]] = {
    "one-too-many": ([5], [1], 0),
    "start-outside": ([1], [1], 4),
    "start-far-outside": ([1], [1], 10**12),
    "start-negative": ([1], [1], -1),
    "stride-outside": ([2], [10**7], 0),
    "stride-far-outside": ([2], [10**12], 0),
    "stride-negative": ([2], [-1], 1),
    "shape-negative": ([-4], [1], 0),
    "shape-negative-twice": ([-2, -2], [1, 1], 0),
    "shape-wraps-64-bits": ([2**32, 2**32], [1, 1], 0),
    "shape-wraps-to-4": ([2**62 + 1, 4], [1, 1], 0),
    "stride-wraps-64-bits": ([3], [2**63 - 1], 0),
    "stride-and-start-wrap": ([2], [2**63 - 1], 2),
    "expansion-of-1e12": ([10**6, 10**6], [0, 0], 0),
    "expansion-of-1e9": ([10**9], [0], 0),
    "expansion-of-4e4": ([10**4, 4], [0, 1], 0),
    "window-of-1e12": ([2] * 40, [0] * 40, 0),
    "shape-longer-than-stride": ([2, 2], [1], 0),
    "stride-longer-than-shape": ([4], [1, 1], 0),
    "beyond-64-bits": ([10**30], [1], 0),
    "empty-of-2-to-62": ([0, 2**62], [1, 1], 0),
    "empty-beyond-64-bits": ([0, 2**61, 2**61], [1, 1, 1], 0),
    "10000-dimensions": ([1] * 10_000, [1] * 10_000, 0),
}

#: Arguments of the rebuild call that are not even numbers, or too few.
MALFORMED: dict[str, bytes] = {
    "no-arguments": op.call("torch._utils._rebuild_tensor_v2"),
    "three-arguments": op.call("torch._utils._rebuild_tensor_v2", _FOUR, op.number(0), op.sizes([4])),
    "ten-arguments": op.call("torch._utils._rebuild_tensor_v2", _FOUR, *[op.number(0)] * 9),
    "shape-of-text": op.tensor(_FOUR, op.sequence(op.text("4")), op.sizes([1])),
    "shape-of-reals": op.tensor(_FOUR, op.sequence(op.real(4.0)), op.sizes([1])),
    "shape-of-nan": op.tensor(_FOUR, op.sequence(op.real(float("nan"))), op.sizes([1])),
    "shape-of-truth": op.tensor(_FOUR, op.sequence(op.TRUE), op.sizes([1])),
    "shape-a-list": op.tensor(_FOUR, op.listing(op.number(4)), op.listing(op.number(1))),
    "shape-a-name": op.tensor(_FOUR, op.name("os.system"), op.sizes([1])),
    "shape-none": op.tensor(_FOUR, op.NONE, op.NONE),
    "start-of-text": op.tensor(_FOUR, op.sizes([4]), op.sizes([1]), op.text("0")),
    "start-a-tensor": op.tensor(_FOUR, op.sizes([4]), op.sizes([1]), op.vector()),
    "storage-a-list": op.tensor(op.listing(op.real(1.0)), op.sizes([1]), op.sizes([1])),
    "storage-a-name": op.tensor(op.name("torch.FloatStorage"), op.sizes([1]), op.sizes([1])),
    "storage-a-tensor": op.tensor(op.vector(), op.sizes([4]), op.sizes([1])),
    "storage-a-number": op.tensor(op.number(0x7FFF00000000), op.sizes([4]), op.sizes([1])),
    "storage-foreign": op.tensor(op.call("torch.FloatStorage", op.number(10**12)), op.sizes([1]), op.sizes([1])),
    "parameter-of-text": op.call("torch._utils._rebuild_parameter", op.text("x"), op.TRUE, _HOOKS),
    "parameter-of-nothing": op.call("torch._utils._rebuild_parameter"),
}


def _indices(values: tuple[int, ...]) -> bytes:
    kind = "torch.LongStorage"
    return op.tensor(op.storage(op.text("1"), len(values), kind=kind), op.sizes([1, len(values)]), op.sizes([1, 1]))


def _sparse(layout: str, *parts: bytes) -> bytes:
    return op.call("torch._utils._rebuild_sparse_tensor", op.name(f"torch.{layout}"), op.sequence(*parts))


_VALUES = op.tensor(op.storage(op.text("0"), 1), op.sizes([1]), op.sizes([1]))

#: Kinds of tensors that are no strided window into a storage of the file; with their storage number 1.
KINDS: dict[str, tuple[bytes, bytes]] = {
    "sparse-coo-index-1e9": (
        _sparse("sparse_coo", _indices((10**9,)), _VALUES, op.sizes([3]), op.TRUE),
        struct.pack("<q", 10**9),
    ),
    "sparse-csr-row-2e20": (
        _sparse("sparse_csr", _indices((0, 2**20)), _indices((0, 0)), _VALUES, op.sizes([1, 3])),
        struct.pack("<2q", 0, 2**20),
    ),
    "sparse-shape-1e12": (_sparse("sparse_coo", _indices((0,)), _VALUES, op.sizes([10**12]), op.TRUE), bytes(8)),
    "quantised-stride-1e12": (
        op.call(
            "torch._utils._rebuild_qtensor",
            op.storage(op.text("1"), 8, kind="torch.QUInt8Storage"),
            op.number(0),
            op.sizes([2]),
            op.sizes([10**12]),
            op.sequence(op.name("torch.per_tensor_affine"), op.real(0.1), op.number(0)),
            op.FALSE,
            _HOOKS,
        ),
        bytes(8),
    ),
    "nested": (
        op.call("torch._utils._rebuild_nested_tensor", op.vector(1), _indices((4,)), op.NONE, op.NONE),
        bytes(8),
    ),
    "meta-1e12": (
        op.call(
            "torch._utils._rebuild_meta_tensor_no_storage",
            op.name("torch.float32"),
            op.sizes([10**6, 10**6]),
            op.sizes([10**6, 1]),
            op.FALSE,
        ),
        b"",
    ),
    "wrapper-subclass": (
        op.call(
            "torch._utils._rebuild_wrapper_subclass",
            op.name("subprocess.Popen"),
            op.name("torch.float32"),
            op.sizes([10**6]),
            op.sizes([1]),
            op.number(0),
            op.name("torch.strided"),
            op.call("torch.device", op.text("cpu")),
            op.FALSE,
        ),
        b"",
    ),
    "from-type": (
        op.call(
            "torch._tensor._rebuild_from_type_v2",
            op.name("builtins.eval"),
            op.name("torch.Tensor"),
            op.sequence(op.text("1")),
            op.NONE,
        ),
        b"",
    ),
    "device-from-numpy": (
        op.call(
            "torch._utils._rebuild_device_tensor_from_numpy",
            op.call("numpy._core.multiarray._reconstruct", op.name("numpy.ndarray"), op.sizes([0]), op.octets(b"b")),
            op.name("torch.float32"),
            op.text("xla:0"),
            op.FALSE,
        ),
        b"",
    ),
}

#: A storage's declaration, with the bytes that the file has of it.
STORAGES: dict[str, tuple[bytes, bytes | None]] = {
    "declares-1-tb": (op.storage(op.text("0"), 25 * 10**10), writers.FOUR),
    "declares-more": (op.storage(op.text("0"), 5), writers.FOUR),
    "declares-fewer": (op.storage(op.text("0"), 3), writers.FOUR),
    "declares-negative": (op.storage(op.text("0"), -4), writers.FOUR),
    "declares-wrapping": (op.storage(op.text("0"), 2**62 + 4), writers.FOUR),
    "declares-beyond-64-bits": (op.storage(op.text("0"), 10**30), writers.FOUR),
    "declares-wider": (op.storage(op.text("0"), 4, kind="torch.DoubleStorage"), writers.FOUR),
    "has-odd-bytes": (op.storage(op.text("0"), 4), writers.FOUR + b"x"),
    "is-missing": (op.storage(op.text("1"), 4), writers.FOUR),
    "is-outside": (op.storage(op.text("../data/0"), 4), writers.FOUR),
    "is-a-system-file": (op.storage(op.text("../../../../../../etc/passwd"), 4), writers.FOUR),
    "key-a-number": (op.storage(op.number(0), 4), writers.FOUR),
    "key-bytes": (op.storage(op.octets(b"0"), 4), writers.FOUR),
    "key-a-list": (op.storage(op.EMPTY_LIST, 4), writers.FOUR),
    "key-with-zero": (op.storage(op.text("0\0"), 4), writers.FOUR),
    "of-no-type": (op.storage(op.text("0"), 4, kind="posix.system"), writers.FOUR),
    "of-unknown-type": (op.storage(op.text("0"), 4, kind="torch.Int128Storage"), writers.FOUR),
}


def entries() -> Iterator[Entry]:
    for label, (shape, stride, start) in GEOMETRY.items():
        value = op.tensor(_FOUR, op.sizes(shape), op.sizes(stride), op.number(start))
        yield Entry(f"geometry-{label}.pt", _zip(value), "unreadable")
    for label in ("one-too-many", "start-negative", "stride-far-outside", "expansion-of-1e12", "shape-wraps-to-4"):
        shape, stride, start = GEOMETRY[label]
        value = op.tensor(op.legacy_storage("0", 4), op.sizes(shape), op.sizes(stride), op.number(start))
        yield Entry(f"geometry-{label}.pth", _legacy(value), "unreadable")
    for label, value in MALFORMED.items():
        yield Entry(f"tensor-{label}.pt", _zip(value), "refused|unreadable" + "|inert" * (label == "parameter-of-text"))
    for label, (value, more) in KINDS.items():
        expected = "unreadable|inert" if label.startswith(("from", "device")) else "unreadable"
        yield Entry(f"tensor-{label}.pt", _zip(value, {"0": struct.pack("<f", 1.0), "1": more}), expected)
    for label, (stored, data) in STORAGES.items():
        value = op.tensor(stored, op.sizes([1]), op.sizes([1]))
        yield Entry(f"storage-{label}.pt", _zip(value, {"0": data}), "refused|unreadable")
    yield from _contradictions()
    yield from _typed()
    yield from _legacy_storages()
    for label, value in _arrays().items():
        yield Entry(f"numpy-{label}.pt", _zip(value), "refused|unreadable")


def _typed() -> Iterator[Entry]:
    """Tensors that read untyped bytes as numbers of any type that torch names, of some of which it can't hold any."""
    for dtype in ("qint8", "quint4x2", "bits8", "uint4", "int7", "float4_e2m1fn_x2", "float8_e8m0fnu", "nonsense"):
        stored = op.storage(op.text("0"), 16, kind="torch.UntypedStorage")
        value = op.call(
            "torch._utils._rebuild_tensor_v3",
            stored,
            op.number(0),
            op.sizes([4]),
            op.sizes([1]),
            op.FALSE,
            _HOOKS,
            op.name(f"torch.{dtype}"),
        )
        yield Entry(f"typed-{dtype}.pt", _zip(value), "inert" if dtype.startswith("float8") else "refused|unreadable")


def _contradictions() -> Iterator[Entry]:
    """One storage that two tensors declare in two ways."""
    wide = op.tensor(op.storage(op.text("0"), 2, kind="torch.DoubleStorage"), op.sizes([2]), op.sizes([1]))
    yield Entry("storage-of-two-types.pt", _zip(op.listing(op.vector(), wide)), "refused|inert|unreadable")
    two = op.tensor(op.storage(op.text("0"), 2), op.sizes([2]), op.sizes([1]))
    yield Entry("storage-of-two-sizes.pt", _zip(op.listing(op.vector(), two)), "refused|unreadable")
    yield Entry("storage-on-cuda.pt", _zip(_placed("cuda:7")), "inert")
    yield Entry("storage-on-meta.pt", _zip(_placed("meta")), "inert|unreadable|refused")
    yield Entry("storage-on-nonsense.pt", _zip(_placed("../../x\x1b[0m")), "inert|unreadable|refused")


def _placed(place: str) -> bytes:
    return op.tensor(op.storage(op.text("0"), 4, place=place), op.sizes([4]), op.sizes([1]))


def _legacy_storages() -> Iterator[Entry]:
    value = op.named(w=op.legacy_vector())
    huge = op.named(w=op.tensor(op.legacy_storage("0", 25 * 10**10), op.sizes([4]), op.sizes([1])))
    four = {"0": (4, writers.FOUR)}
    for label, data in {
        "no-storage": writers.legacy(value, {}),
        "other-storage": writers.legacy(value, {"1": (4, writers.FOUR)}),
        "keys-no-list": writers.legacy(value, four, keys=op.pickled(op.NONE)),
        "keys-twice": writers.legacy(value, four, keys=op.pickled(op.listing(op.text("0"), op.text("0")))),
        "keys-of-numbers": writers.legacy(value, four, keys=op.pickled(op.listing(op.number(0)))),
        "stored-1-tb": writers.legacy(value, {"0": (25 * 10**10, writers.FOUR)}),
        "both-1-tb": writers.legacy(huge, {"0": (25 * 10**10, writers.FOUR)}),
        "stored-fewer": writers.legacy(value, {"0": (3, writers.FOUR[:12])}),
        "stored-negative": writers.legacy(value, {"0": (-4, writers.FOUR)}),
        "stored-cut": writers.legacy(value, {"0": (4, writers.FOUR[:-1])}),
        "bytes-behind": writers.legacy(value, four) + b"\0" * 8,
        "system-a-list": writers.legacy(value, four, system=op.pickled(op.EMPTY_LIST)),
        "endian-of-text": writers.legacy(value, four, system=op.pickled(op.named(little_endian=op.text("mixed")))),
        "version-of-text": writers.legacy(value, four, version=op.pickled(op.text("1001"))),
        "version-7": writers.legacy(value, four, version=op.pickled(op.number(7))),
        "wrong-magic": writers.legacy(value, four, magic=op.pickled(op.number(7))),
    }.items():
        yield Entry(f"legacy-{label}.pth", constant(data), "refused|unreadable")
    for label, view in {
        "outside": op.sequence(op.text("v"), op.number(2), op.number(10**9)),
        "negative": op.sequence(op.text("v"), op.number(-1), op.number(2)),
        "of-itself": op.sequence(op.text("0"), op.number(0), op.number(4)),
        "malformed": op.text("view"),
    }.items():
        stored = op.legacy_storage("0", 4, view=view)
        value = op.named(w=op.tensor(stored, op.sizes([4]), op.sizes([1])))
        yield Entry(f"legacy-view-{label}.pth", constant(writers.legacy(value)), "refused|unreadable|inert")


def _dtype(kind: str, order: str = "<") -> bytes:
    state = op.sequence(
        op.number(3), op.text(order), op.NONE, op.NONE, op.NONE, op.number(-1), op.number(-1), op.number(0)
    )
    return op.call("numpy.dtype", op.text(kind), op.FALSE, op.TRUE) + state + op.BUILD


def _array(shape: list[int], dtype: bytes, data: bytes, version: int = 1) -> bytes:
    made = op.call("numpy._core.multiarray._reconstruct", op.name("numpy.ndarray"), op.sizes([0]), op.octets(b"b"))
    return made + op.sequence(op.number(version), op.sizes(shape), dtype, op.FALSE, data) + op.BUILD


def _arrays() -> dict[str, bytes]:
    code = op.call("posix.system", op.text("id"))
    return {
        "shape-1e12": _array([10**6, 10**6], _dtype("f4"), op.octets(bytes(16))),
        "shape-negative": _array([-1], _dtype("f4"), op.octets(bytes(16))),
        "shape-wraps": _array([2**62 + 1, 4], _dtype("f4"), op.octets(bytes(16))),
        "too-few-bytes": _array([4], _dtype("f8"), op.octets(bytes(16))),
        "objects": _array([1], _dtype("O8", "|"), op.listing(code)),
        "bytes-as-objects": _array([2], _dtype("O8", "|"), op.octets(bytes(16))),
        "void-of-1e9": _array([1], _dtype("V1000000000"), op.octets(bytes(16))),
        "dtype-of-code": _array([1], code, op.octets(bytes(4))),
        "dtype-unknown": _array([1], _dtype("../../x"), op.octets(bytes(4))),
        "data-a-list": _array([1], _dtype("f4"), op.listing(op.real(1.0))),
    }


def _zip(value: bytes, storages: dict[str, bytes | None] | None = None) -> Callable[[Trap], bytes]:
    held = None if storages is None else {key: data for key, data in storages.items() if data}
    return lambda trap: writers.zipped(op.named(extra=value), held)


def _legacy(value: bytes) -> Callable[[Trap], bytes]:
    return constant(writers.legacy(op.named(extra=value)))
