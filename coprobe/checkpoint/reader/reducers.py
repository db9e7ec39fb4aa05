"""Reducers: what the functions that a pickle names would return, made as plain data without calling any of them.

A reducer takes the unpickler, whose memory budget it pays from, and the arguments that the pickle gives. Whatever these
are, it returns tensor specs and plain values, or raises what the unpickler takes for damage.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from coprobe.checkpoint.reader.values import (
    MOST_DIMENSIONS,
    GlobalName,
    OpaqueObject,
    Storage,
    TensorSpec,
    UnreadableTensor,
    contiguous_stride,
    view_fault,
)
from coprobe.errors import InputError

if TYPE_CHECKING:
    from coprobe.checkpoint.reader.unpickler import Unpickler

Reducer = Callable[..., Any]

#: What a reducer returns for arguments that it can make nothing of: the call stays opaque.
UNKNOWN = object()
_LONGEST_COPY = 1 << 20

#: Storage classes of torch, by the name before "Storage"; `UntypedStorage` holds bytes that each tensor reads its way.
STORAGE_TYPES: dict[str, torch.dtype | None] = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "QInt8": torch.int8,
    "QUInt8": torch.uint8,
    "QInt32": torch.int32,
    "Untyped": None,
}
#: Element types that tensors in untyped storages may have, by their names: those that torch can copy and convert.
_DTYPES = {
    str(dtype): dtype
    for dtype in (
        *(dtype for dtype in STORAGE_TYPES.values() if dtype is not None),
        torch.uint16,
        torch.uint32,
        torch.uint64,
        torch.complex32,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.float8_e4m3fnuz,
        torch.float8_e5m2fnuz,
        torch.float8_e8m0fnu,
    )
}
_ARRAY_TYPES = {
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "u2": torch.uint16,
    "u4": torch.uint32,
    "u8": torch.uint64,
    "b1": torch.bool,
    "c8": torch.complex64,
    "c16": torch.complex128,
}
_FOREIGN_ORDER = ">" if sys.byteorder == "little" else "<"


def storage_type(label: Any) -> torch.dtype | None:
    """The element type of a storage class by its label; None for untyped bytes.

    Raises:
        InputError: it names no storage of plain numbers.
    """
    text = label.name if isinstance(label, GlobalName) else ""
    module, _, name = text.rpartition(".")
    kind = name.removesuffix("Storage")
    if kind in STORAGE_TYPES and name.endswith("Storage") and module in ("torch", "torch.cuda", "torch.storage"):
        return STORAGE_TYPES[kind]
    raise InputError(f"holds a storage of the unknown type '{text[:60]}'; save model.state_dict() with torch.save")


def restore_array(array: TensorSpec, state: Any) -> None:
    """Give a numpy array the state that its pickle holds: (version, shape, dtype, Fortran order, bytes).

    Raises:
        InputError: it holds Python objects, elements that torch has no type for, or other than its shape.
    """
    if array.storage.held is None or array.storage.key:  # only what `_reconstruct` has made, and only once
        raise TypeError
    _, shape, dtype, fortran, content = state
    if isinstance(content, list):
        raise InputError("holds an array of Python objects, which coprobe doesn't read; save model.state_dict() alone")
    _fill(array, shape, dtype, bool(fortran), content)


# Tensors.


def _tensor(
    unpickler: Unpickler,
    storage: Any,
    start: int,
    shape: Any,
    stride: Any,
    *more: Any,
    dtype: torch.dtype | None = None,
) -> TensorSpec | UnreadableTensor:
    unpickler.pay(1000)
    if isinstance(storage, UnreadableTensor):
        return storage
    if not isinstance(storage, Storage):
        raise TypeError
    dtype = dtype or storage.dtype
    flags = more[2] if len(more) > 2 and isinstance(more[2], dict) else {}
    if dtype is None:
        return UnreadableTensor("has no element type")
    if fault := view_fault(shape, stride, start, storage.nbytes // dtype.itemsize):
        return UnreadableTensor(fault)
    return TensorSpec(
        dtype,
        torch.Size(shape),
        tuple(stride),
        start,
        storage,
        conjugated=flags.get("conj") is True,
        negated=flags.get("neg") is True,
    )


def _typed_tensor(
    unpickler: Unpickler, storage: Any, start: int, shape: Any, stride: Any, *more: Any
) -> TensorSpec | UnreadableTensor:
    gradient, hooks, dtype, *flags = more
    if dtype.name not in _DTYPES:
        return UnreadableTensor(f"has elements of the type {dtype.name[:40]}")
    return _tensor(unpickler, storage, start, shape, stride, gradient, hooks, *flags, dtype=_DTYPES[dtype.name])


def _first(unpickler: Unpickler, value: Any, *more: Any) -> Any:
    return value


def _tensor_subclass(unpickler: Unpickler, function: Any, kind: Any, args: Any, state: Any) -> Any:
    if not isinstance(function, GlobalName) or not function.name.startswith("torch._utils."):
        return UNKNOWN
    return unpickler.call(function, args)


def _unreadable(reason: str) -> Callable[..., UnreadableTensor]:
    return lambda unpickler, *args: UnreadableTensor(reason)


# Arrays and scalars of numpy.


def _as_bytes(content: Any) -> Any:
    """Bytes as they are; Python 2 and protocols below 3 write them as text."""
    return content.encode("latin-1") if isinstance(content, str) else content


def _empty_array(unpickler: Unpickler, *args: Any) -> TensorSpec:
    unpickler.pay(800)
    return TensorSpec(torch.uint8, torch.Size([0]), (1,), 0, Storage("", torch.uint8, -1, 0, held=b""))


def _fill(array: TensorSpec, shape: Any, dtype: Any, fortran: bool, content: Any) -> None:
    code, swapped = _dtype_of(dtype)
    held = _as_bytes(content)
    if code not in _ARRAY_TYPES or not isinstance(held, bytes):
        raise InputError(
            f"holds an array of the type '{code[:20]}', which coprobe doesn't read; save model.state_dict() alone"
        )
    kind = _ARRAY_TYPES[code]
    shape = shape if isinstance(shape, tuple) else (shape,)
    if len(shape) > MOST_DIMENSIONS or not all(type(size) is int and 0 <= size <= len(held) for size in shape):
        raise InputError("holds an array of an impossible shape; copy it again")
    stride = contiguous_stride(shape, column_major=fortran)
    if fault := view_fault(shape, stride, 0, len(held) // kind.itemsize):
        raise InputError(f"holds an array that {fault}; copy it again")
    array.dtype, array.shape, array.stride, array.start = kind, torch.Size(shape), stride, 0
    array.storage = Storage("array", kind, -1, len(held), swapped, held)


def _dtype_of(dtype: Any) -> tuple[str, bool]:
    """The code of a numpy dtype ("f4"), and whether its bytes are in the other order than this machine's."""
    if not isinstance(dtype, OpaqueObject) or not dtype.args or not isinstance(dtype.args[0], str):
        raise TypeError
    order = dtype.state[1] if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else "|"
    return dtype.args[0], order == _FOREIGN_ORDER


def _array_of_buffer(unpickler: Unpickler, content: Any, dtype: Any, shape: Any, order: Any = "C") -> TensorSpec:
    array = _empty_array(unpickler)
    _fill(array, shape, dtype, order == "F", content)
    return array


def _scalar(unpickler: Unpickler, dtype: Any, content: Any = b"") -> Any:
    code, swapped = _dtype_of(dtype)
    held = _as_bytes(content)
    if not isinstance(held, bytes) or len(held) > _LONGEST_COPY:
        raise TypeError
    unpickler.pay(4 * len(held))
    if code.startswith("U"):
        return held.decode("utf-32-be" if swapped == (sys.byteorder == "little") else "utf-32-le").rstrip("\0")
    if code.startswith("S"):
        return held.rstrip(b"\0")
    if code not in _ARRAY_TYPES:
        return UNKNOWN
    kind = np.dtype(code)
    if len(held) != kind.itemsize:
        raise ValueError
    return np.frombuffer(held, kind.newbyteorder() if swapped else kind)[0].item()


# Plain values.


def _encoded(unpickler: Unpickler, text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise TypeError
    unpickler.pay(len(text))
    return text.encode("latin-1" if encoding.startswith("latin") else encoding)


def _mapping(unpickler: Unpickler, *args: Any) -> dict[Any, Any]:
    given = args[0] if args else ()
    pairs = list(given.items()) if isinstance(given, dict) else given
    if not isinstance(pairs, list | tuple):
        raise TypeError
    unpickler.pay(200 + 110 * len(pairs))
    return {unpickler.key(key): value for key, value in pairs}


def _mapping_with_default(unpickler: Unpickler, *args: Any) -> dict[Any, Any]:
    return _mapping(unpickler, *args[1:])


def _sequence(make: Callable[[Any], Any]) -> Reducer:
    def copy(unpickler: Unpickler, *args: Any) -> Any:
        given = args[0] if args else ()
        if not isinstance(given, list | tuple | str | bytes | set | frozenset):
            raise TypeError
        unpickler.pay(230 + 80 * len(given))
        return make([unpickler.key(value) for value in given] if make in (set, frozenset) else given)

    return copy


def _text_of_parts(unpickler: Unpickler, *parts: Any) -> str:
    if not all(isinstance(part, str) for part in parts):
        raise TypeError
    unpickler.pay(sum(map(len, parts)) + 100)
    return "/".join(parts).replace("//", "/") or "."


def _device(unpickler: Unpickler, kind: Any, index: Any = None) -> str:
    if not isinstance(kind, str) or not isinstance(index, int | None):
        raise TypeError
    unpickler.pay(len(kind))
    return kind if index is None else f"{kind}:{index}"


def _bytes(unpickler: Unpickler, *args: Any) -> bytes:
    if not args:
        return b""
    return _encoded(unpickler, *args) if isinstance(args[0], str) else bytes(_sequence(list)(unpickler, args[0]))


def _complex(unpickler: Unpickler, real: float = 0, imaginary: float = 0) -> complex:
    return complex(real, imaginary)


def _reconstructed(unpickler: Unpickler, kind: Any, base: Any = None, state: Any = None, *more: Any) -> Any:
    return OpaqueObject(kind.name if isinstance(kind, GlobalName) else "object", state=state)


def _named(modules: str, names: str, reducer: Reducer) -> dict[str, Reducer]:
    return {f"{module}.{name}": reducer for module in modules.split() for name in names.split()}


#: The functions and classes whose meaning is known, by name.
REDUCERS: dict[str, Reducer] = {
    **_named("torch._utils", "_rebuild_tensor _rebuild_tensor_v2", _tensor),
    **_named("torch._utils", "_rebuild_tensor_v3", _typed_tensor),
    **_named("torch._utils", "_rebuild_parameter _rebuild_parameter_with_state", _first),
    **_named("torch._utils", "_rebuild_device_tensor_from_numpy _rebuild_device_tensor_from_cpu_tensor", _first),
    **_named("torch._tensor", "_rebuild_from_type_v2", _tensor_subclass),
    **_named("torch._utils", "_rebuild_sparse_tensor _rebuild_sparse_csr_tensor", _unreadable("is sparse")),
    **_named("torch._utils", "_rebuild_qtensor", _unreadable("is quantised")),
    **_named("torch._utils", "_rebuild_nested_tensor", _unreadable("is nested")),
    **_named(
        "torch._utils", "_rebuild_meta_tensor_no_storage", _unreadable("holds no numbers (it was on the meta device)")
    ),
    **_named("torch._utils", "_rebuild_wrapper_subclass", _unreadable("is of a class of its own")),
    **_named("torch.storage", "_load_from_bytes", _unreadable("is in a pickle within the pickle")),
    **_named("torch", "Size", _sequence(tuple)),
    **_named("torch", "device", _device),
    **_named("numpy.core.multiarray numpy._core.multiarray", "_reconstruct", _empty_array),
    **_named("numpy.core.multiarray numpy._core.multiarray", "scalar", _scalar),
    **_named("numpy.core.numeric numpy._core.numeric", "_frombuffer", _array_of_buffer),
    **_named("collections", "OrderedDict Counter", _mapping),
    **_named("collections", "defaultdict", _mapping_with_default),
    **_named("collections", "deque", _sequence(list)),
    **_named("builtins __builtin__", "list", _sequence(list)),
    **_named("builtins __builtin__", "tuple", _sequence(tuple)),
    **_named("builtins __builtin__", "set", _sequence(set)),
    **_named("builtins __builtin__", "frozenset", _sequence(frozenset)),
    **_named("builtins __builtin__", "dict", _mapping),
    **_named("builtins __builtin__", "complex", _complex),
    **_named("builtins __builtin__", "bytes bytearray", _bytes),
    **_named("copyreg copy_reg", "_reconstructor", _reconstructed),
    **_named("_codecs", "encode", _encoded),
    **_named(
        "pathlib pathlib._local",
        "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
        _text_of_parts,
    ),
}
#: Classes that honest files often hold beside the weights, so that no note mentions them.
ORDINARY = frozenset(
    {"argparse.Namespace", "numpy.dtype", "datetime.datetime", "datetime.timedelta", "datetime.date", "decimal.Decimal"}
)
