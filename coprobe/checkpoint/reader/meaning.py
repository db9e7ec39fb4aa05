"""What the names in a pickle stand for, said without calling any of them: tensors, arrays, plain values."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from coprobe.checkpoint.reader.machine import UNKNOWN, Machine
from coprobe.checkpoint.reader.values import Foreign, Name, Storage, Stored, Unsound
from coprobe.errors import InputError

_MOST_DIMENSIONS = 64
_FAR = 2**62
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
    text = label.name if isinstance(label, Name) else ""
    module, _, name = text.rpartition(".")
    kind = name.removesuffix("Storage")
    if kind in STORAGE_TYPES and name.endswith("Storage") and module in ("torch", "torch.cuda", "torch.storage"):
        return STORAGE_TYPES[kind]
    raise InputError(f"holds a storage of the unknown type '{text[:60]}'; save model.state_dict() with torch.save")


def call(machine: Machine, name: str, args: tuple[Any, ...]) -> Any:
    """The value of a known call; `UNKNOWN` for any other."""
    known = _CALLS.get(name)
    return known(machine, *args) if known else UNKNOWN


def restore_array(array: Stored, state: Any) -> None:
    """Give an array what its pickle says of it: (version, shape, dtype, Fortran order, bytes).

    Raises:
        InputError: it says less or more than an array of numbers has.
    """
    if array.storage.held is None or array.storage.key:  # only what `_reconstruct` has made, and only once
        raise TypeError
    _, shape, dtype, fortran, content = state
    if isinstance(content, list):
        raise InputError("holds an array of Python objects, which coprobe doesn't read; save model.state_dict() alone")
    _fill(array, shape, dtype, bool(fortran), content)


# Tensors.


def _tensor(
    machine: Machine, storage: Any, start: int, shape: Any, stride: Any, *more: Any, dtype: torch.dtype | None = None
) -> Stored | Unsound:
    machine.pay(1000)
    if isinstance(storage, Unsound):
        return storage
    if not isinstance(storage, Storage):
        raise TypeError
    dtype = dtype or storage.dtype
    flags = more[2] if len(more) > 2 and isinstance(more[2], dict) else {}
    if dtype is None:
        return Unsound("has no element type")
    problem = outside(shape, stride, start, storage.nbytes // dtype.itemsize)
    if problem:
        return Unsound(problem)
    return Stored(
        dtype,
        torch.Size(shape),
        tuple(stride),
        start,
        storage,
        conjugated=flags.get("conj") is True,
        negated=flags.get("neg") is True,
    )


def outside(shape: Any, stride: Any, start: Any, stored: int) -> str:
    """Why a tensor of this geometry can't be in a storage of so many elements; empty if it can."""
    if not (isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride) <= _MOST_DIMENSIONS):
        return "has no geometry"
    if not all(type(n) is int and 0 <= n < _FAR for n in (*shape, *stride, start)):
        return "has an impossible geometry"
    if math.prod(max(1, size) for size in shape) >= _FAR:
        return "has an impossible geometry"
    count = math.prod(shape)
    if count > stored:
        return f"has {count:,} elements where {stored:,} are stored"
    last = start + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if count else start - 1
    return "" if last < stored else "reaches outside its storage"


def _typed_tensor(machine: Machine, storage: Any, start: int, shape: Any, stride: Any, *more: Any) -> Stored | Unsound:
    gradient, hooks, dtype, *flags = more
    if dtype.name not in _DTYPES:
        return Unsound(f"has elements of the type {dtype.name[:40]}")
    return _tensor(machine, storage, start, shape, stride, gradient, hooks, *flags, dtype=_DTYPES[dtype.name])


def _first(machine: Machine, value: Any, *more: Any) -> Any:
    return value


def _of_subclass(machine: Machine, function: Any, kind: Any, args: Any, state: Any) -> Any:
    if not isinstance(function, Name) or not function.name.startswith("torch._utils."):
        return UNKNOWN
    return machine.call(function, args)


def _unsound(reason: str) -> Callable[..., Unsound]:
    return lambda machine, *args: Unsound(reason)


# Arrays and scalars of numpy.


def _empty_array(machine: Machine, *args: Any) -> Stored:
    machine.pay(800)
    return Stored(torch.uint8, torch.Size([0]), (1,), 0, Storage("", torch.uint8, -1, 0, held=b""))


def _fill(array: Stored, shape: Any, dtype: Any, fortran: bool, content: Any) -> None:
    code, swapped = _element(dtype)
    held = content.encode("latin-1") if isinstance(content, str) else content
    if code not in _ARRAY_TYPES or not isinstance(held, bytes):
        raise InputError(
            f"holds an array of the type '{code[:20]}', which coprobe doesn't read; save model.state_dict() alone"
        )
    kind = _ARRAY_TYPES[code]
    shape = shape if isinstance(shape, tuple) else (shape,)
    if len(shape) > _MOST_DIMENSIONS or not all(type(size) is int and 0 <= size <= len(held) for size in shape):
        raise InputError("holds an array of an impossible shape; copy it again")
    stride = _dense(shape, fortran)
    problem = outside(shape, stride, 0, len(held) // kind.itemsize)
    if problem:
        raise InputError(f"holds an array that {problem}; copy it again")
    array.dtype, array.shape, array.stride, array.start = kind, torch.Size(shape), stride, 0
    array.storage = Storage("array", kind, -1, len(held), swapped, held)


def _dense(shape: tuple[int, ...], fortran: bool) -> tuple[int, ...]:
    stride, step = [], 1
    for size in shape if fortran else shape[::-1]:
        stride.append(step)
        step *= size
    return tuple(stride if fortran else stride[::-1])


def _element(dtype: Any) -> tuple[str, bool]:
    """The code of an element type ("f4") and whether its bytes are in the other order."""
    if not isinstance(dtype, Foreign) or not dtype.args or not isinstance(dtype.args[0], str):
        raise TypeError
    order = dtype.state[1] if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else "|"
    return dtype.args[0], order == _FOREIGN_ORDER


def _array_of_buffer(machine: Machine, content: Any, dtype: Any, shape: Any, order: Any = "C") -> Stored:
    array = _empty_array(machine)
    _fill(array, shape, dtype, order == "F", content)
    return array


def _scalar(machine: Machine, dtype: Any, content: Any = b"") -> Any:
    code, swapped = _element(dtype)
    held = content.encode("latin-1") if isinstance(content, str) else content
    if not isinstance(held, bytes) or len(held) > _LONGEST_COPY:
        raise TypeError
    machine.pay(4 * len(held))
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


def _encoded(machine: Machine, text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise TypeError
    machine.pay(len(text))
    return text.encode("latin-1" if encoding.startswith("latin") else encoding)


def _mapping(machine: Machine, *args: Any) -> dict[Any, Any]:
    given = args[0] if args else ()
    pairs = list(given.items()) if isinstance(given, dict) else given
    if not isinstance(pairs, list | tuple):
        raise TypeError
    machine.pay(200 + 110 * len(pairs))
    return {machine.key(key): value for key, value in pairs}


def _mapping_with_default(machine: Machine, *args: Any) -> dict[Any, Any]:
    return _mapping(machine, *args[1:])


def _sequence(make: Callable[[Any], Any]) -> Callable[..., Any]:
    def copy(machine: Machine, *args: Any) -> Any:
        given = args[0] if args else ()
        if not isinstance(given, list | tuple | str | bytes | set | frozenset):
            raise TypeError
        machine.pay(230 + 80 * len(given))
        return make([machine.key(value) for value in given] if make in (set, frozenset) else given)

    return copy


def _text_of_parts(machine: Machine, *parts: Any) -> str:
    if not all(isinstance(part, str) for part in parts):
        raise TypeError
    machine.pay(sum(map(len, parts)) + 100)
    return "/".join(parts).replace("//", "/") or "."


def _device(machine: Machine, kind: Any, index: Any = None) -> str:
    if not isinstance(kind, str) or not isinstance(index, int | None):
        raise TypeError
    machine.pay(len(kind))
    return kind if index is None else f"{kind}:{index}"


def _bytes(machine: Machine, *args: Any) -> bytes:
    if not args:
        return b""
    return _encoded(machine, *args) if isinstance(args[0], str) else bytes(_sequence(list)(machine, args[0]))


def _complex(machine: Machine, real: float = 0, imaginary: float = 0) -> complex:
    return complex(real, imaginary)


def _reconstructed(machine: Machine, kind: Any, base: Any = None, state: Any = None, *more: Any) -> Any:
    return Foreign(kind.name if isinstance(kind, Name) else "object", state=state)


def _both(modules: str, names: str, value: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    return {f"{module}.{name}": value for module in modules.split() for name in names.split()}


_CALLS: dict[str, Callable[..., Any]] = {
    **_both("torch._utils", "_rebuild_tensor _rebuild_tensor_v2", _tensor),
    **_both("torch._utils", "_rebuild_tensor_v3", _typed_tensor),
    **_both("torch._utils", "_rebuild_parameter _rebuild_parameter_with_state", _first),
    **_both("torch._utils", "_rebuild_device_tensor_from_numpy _rebuild_device_tensor_from_cpu_tensor", _first),
    **_both("torch._tensor", "_rebuild_from_type_v2", _of_subclass),
    **_both("torch._utils", "_rebuild_sparse_tensor _rebuild_sparse_csr_tensor", _unsound("is sparse")),
    **_both("torch._utils", "_rebuild_qtensor", _unsound("is quantised")),
    **_both("torch._utils", "_rebuild_nested_tensor", _unsound("is nested")),
    **_both(
        "torch._utils", "_rebuild_meta_tensor_no_storage", _unsound("holds no numbers (it was on the meta device)")
    ),
    **_both("torch._utils", "_rebuild_wrapper_subclass", _unsound("is of a class of its own")),
    **_both("torch.storage", "_load_from_bytes", _unsound("is in a pickle within the pickle")),
    **_both("torch", "Size", _sequence(tuple)),
    **_both("torch", "device", _device),
    **_both("numpy.core.multiarray numpy._core.multiarray", "_reconstruct", _empty_array),
    **_both("numpy.core.multiarray numpy._core.multiarray", "scalar", _scalar),
    **_both("numpy.core.numeric numpy._core.numeric", "_frombuffer", _array_of_buffer),
    **_both("collections", "OrderedDict Counter", _mapping),
    **_both("collections", "defaultdict", _mapping_with_default),
    **_both("collections", "deque", _sequence(list)),
    **_both("builtins __builtin__", "list", _sequence(list)),
    **_both("builtins __builtin__", "tuple", _sequence(tuple)),
    **_both("builtins __builtin__", "set", _sequence(set)),
    **_both("builtins __builtin__", "frozenset", _sequence(frozenset)),
    **_both("builtins __builtin__", "dict", _mapping),
    **_both("builtins __builtin__", "complex", _complex),
    **_both("builtins __builtin__", "bytes bytearray", _bytes),
    **_both("copyreg copy_reg", "_reconstructor", _reconstructed),
    **_both("_codecs", "encode", _encoded),
    **_both(
        "pathlib pathlib._local",
        "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
        _text_of_parts,
    ),
}
#: Classes that honest files hold beside the weights; naming them says nothing about a file.
ORDINARY = frozenset(
    {"argparse.Namespace", "numpy.dtype", "datetime.datetime", "datetime.timedelta", "datetime.date", "decimal.Decimal"}
)
