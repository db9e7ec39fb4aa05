"""safetensors files: their library checks the header; the bytes are read by position."""

from __future__ import annotations

import json
from typing import Any

import torch

from coprobe.checkpoint.reader.file import OpenFile
from coprobe.checkpoint.reader.values import (
    Storage,
    TensorSpec,
    UnreadableTensor,
    contiguous_stride,
    view_fault,
)
from coprobe.errors import InputError

MOST_TENSORS = 20_000
_LONGEST_HEADER = 8 << 20
#: How often the signs of JSON may stand in a header of so many tensors, and of texts with such signs in its metadata.
_MOST_SIGNS = {b"{": 2 * MOST_TENSORS, b"[": 3 * MOST_TENSORS, b":": 6 * MOST_TENSORS, b",": 12 * MOST_TENSORS}
_AGAIN = "copy or download it again"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


def read_safetensors(file: OpenFile) -> tuple[dict[str, TensorSpec | UnreadableTensor], dict[str, str]]:
    """Tensors by name, and the file's own metadata.

    Raises:
        InputError: cut short, a header that lies, or more tensors than coprobe reads.
    """
    from safetensors import SafetensorError, safe_open

    length = int.from_bytes(file.read(0, 8), "little")
    if length + 8 > file.size:
        raise InputError(f"is cut short: its header ends at byte {length + 8:,}, and it has {file.size:,}; {_AGAIN}")
    if length > _LONGEST_HEADER:
        raise InputError(f"has a header of {length:,} bytes, and coprobe reads {_LONGEST_HEADER:,}; save fewer tensors")
    text = file.read(8, length)
    if any(text.count(sign) > most for sign, most in _MOST_SIGNS.items()):
        raise InputError(f"holds more tensors than the {MOST_TENSORS:,} that coprobe reads; save the state_dict alone")
    try:
        header: dict[str, Any] = json.loads(text, object_pairs_hook=_unique)
        with safe_open(str(file.path), framework="pt") as checked:
            names, metadata = list(checked.keys()), dict(checked.metadata() or {})
    except (SafetensorError, ValueError, RecursionError, MemoryError, OSError) as error:
        raise InputError(f"is a damaged or forged safetensors file ({str(error)[:80]}); {_AGAIN}") from None
    return {name: _tensor(name, header[name], 8 + length) for name in names}, metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; two values of one name are an error, since readers differ in which they take."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("two entries of one name")
    return dict(pairs)


def _tensor(name: str, entry: dict[str, Any], start: int) -> TensorSpec | UnreadableTensor:
    """The tensor of an entry that the library has found consistent; the data begin at byte `start` of the file."""
    shape, (first, last) = tuple(entry["shape"]), entry["data_offsets"]
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        return UnreadableTensor(f"has elements of the type {entry['dtype'][:20]}", torch.Size(shape))
    stride = contiguous_stride(shape)
    if fault := view_fault(shape, stride, 0, (last - first) // dtype.itemsize):
        return UnreadableTensor(fault)
    return TensorSpec(dtype, torch.Size(shape), stride, 0, Storage(name, dtype, start + first, last - first))
