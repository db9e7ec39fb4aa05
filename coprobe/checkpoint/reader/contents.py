"""What is in a checkpoint file: its payload as plain data, and its tensors, read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coprobe.checkpoint.reader import seal
from coprobe.checkpoint.reader.container import container_of
from coprobe.checkpoint.reader.file import OpenFile
from coprobe.checkpoint.reader.safetensors import read_safetensors
from coprobe.checkpoint.reader.torch_files import NO_CHECKSUMS, read_pickles, read_zip
from coprobe.checkpoint.reader.values import TensorSpec
from coprobe.core.files import about_file
from coprobe.errors import InputError

_ALIGNED = 16
_DEEPEST = 100


@dataclass(frozen=True)
class Contents:
    """An open checkpoint file.

    Attributes:
        file: its bytes.
        container: `zip`, `legacy pickle`, `plain pickle` or `safetensors`.
        payload: plain values; tensors are `TensorSpec` or `UnreadableTensor`, objects of other classes `OpaqueObject`.
        notes: what a person should know about it, a sentence each.
        metadata: of a safetensors file, else empty.
        sealed: whether it carries a seal, which then fits every bit of it.
    """

    file: OpenFile
    container: str
    payload: Any
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    sealed: bool = False

    def tensors(self, wanted: Mapping[str, TensorSpec]) -> dict[str, Tensor]:
        """Read these tensors, and no others, onto the CPU; those that share a storage share it afterwards, too.

        Raises:
            InputError: the file changed since it was opened, or the memory doesn't suffice.
        """
        ranges: dict[int, tuple[TensorSpec, int, int]] = {}
        for stored in wanted.values():
            first, last = _extent(stored)
            one, begin, end = ranges.get(id(stored.storage), (stored, first, last))
            ranges[id(stored.storage)] = (one, min(begin, first), max(end, last))
        read = {key: (self._bytes(one, begin, end), begin) for key, (one, begin, end) in ranges.items()}
        self.file.check_unchanged()
        return {name: _view(stored, *read[id(stored.storage)]) for name, stored in wanted.items()}

    def numbers(self, small: TensorSpec) -> list[float]:
        """The elements of a small tensor of real numbers, flattened; whole numbers come as ints."""
        tensor = self.tensors({"": small})[""].flatten()
        numbers: list[float] = (tensor.double() if tensor.is_floating_point() else tensor).tolist()
        return numbers

    def loaded(self) -> Any:
        """The payload with every tensor in its place; for files that hold nothing but tensors and plain values.

        Raises:
            InputError: it holds anything else, or is nested too deeply.
        """
        found: dict[str, TensorSpec] = {}
        _collect(self.payload, found, set(), ())
        return _replaced(self.payload, self.tensors(found), {})

    def _bytes(self, stored: TensorSpec, begin: int, end: int) -> Tensor:
        """These bytes of the storage of a tensor, in this machine's order for the elements of that tensor."""
        storage = stored.storage
        try:
            buffer = torch.empty(end - begin, dtype=torch.uint8)
        except (RuntimeError, MemoryError):
            raise InputError(f"has {(end - begin) / 2**30:,.1f} GiB of weights, for which the memory doesn't suffice; "
                             "use a larger machine") from None  # fmt: skip
        raw = buffer.numpy()
        if storage.held is not None:
            raw[:] = np.frombuffer(storage.held, np.uint8)[begin:end]
        else:
            self.file.fill(storage.offset + begin, raw)
        if storage.swapped:
            width = stored.dtype.itemsize // (2 if stored.dtype.is_complex else 1)
            raw.view(f"u{width}").byteswap(inplace=True)
        return buffer


def _extent(stored: TensorSpec) -> tuple[int, int]:
    """First and last byte of the storage that a tensor looks at; the first one aligned."""
    width = stored.dtype.itemsize
    if not stored.numel():
        return 0, 0
    steps = sum((size - 1) * step for size, step in zip(stored.shape, stored.stride, strict=True))
    return stored.start * width // _ALIGNED * _ALIGNED, (stored.start + steps + 1) * width


def _view(stored: TensorSpec, raw: Tensor, begin: int) -> Tensor:
    if not stored.numel():
        return torch.empty(stored.shape, dtype=stored.dtype)
    width = stored.dtype.itemsize
    raw = raw[: len(raw) // width * width]
    if stored.dtype is torch.bool:
        raw = raw != 0  # another byte in a bool is undefined behaviour
    typed = raw.view(stored.dtype)
    tensor = typed.as_strided(stored.shape, stored.stride, stored.start - begin // width)
    tensor = tensor.conj() if stored.conjugated else tensor
    tensor = torch._neg_view(tensor) if stored.negated else tensor
    return tensor.resolve_conj().resolve_neg() if stored.conjugated or stored.negated else tensor


def _collect(value: Any, found: dict[str, TensorSpec], seen: set[int], around: tuple[int, ...]) -> None:
    """Find every tensor; `around` are the containers that `value` is in."""
    if len(around) > _DEEPEST or id(value) in around:
        raise InputError("is nested too deeply; copy it again")
    if isinstance(value, TensorSpec):
        found[str(id(value))] = value
    elif isinstance(value, dict | list | tuple):
        if id(value) in seen:
            return
        seen.add(id(value))
        for part in value.values() if isinstance(value, dict) else value:
            _collect(part, found, seen, (*around, id(value)))
    elif not isinstance(value, bool | int | float | str | bytes | None):
        raise InputError(f"holds a {getattr(value, 'name', type(value).__name__)} where plain values belong")


def _replaced(value: Any, read: Mapping[str, Tensor], done: dict[int, Any]) -> Any:
    if isinstance(value, TensorSpec):
        return read[str(id(value))]
    if not isinstance(value, dict | list | tuple):
        return value
    if id(value) not in done:
        if isinstance(value, dict):
            done[id(value)] = {key: _replaced(part, read, done) for key, part in value.items()}
        else:
            done[id(value)] = type(value)(_replaced(part, read, done) for part in value)
    return done[id(value)]


@contextmanager
def open_checkpoint(path: str | Path) -> Iterator[Contents]:
    """Open a checkpoint file without running, importing or calling anything that it names.

    Reads what `torch.save` writes (zip archives, legacy pickles), plain pickles and safetensors, told apart by
    content. Tensors are read within the block, when `Contents.tensors` asks for them. An `InputError` of the block
    names the file.

    Args:
        path: a regular file.

    Yields:
        Its contents.

    Raises:
        InputError: anything that is not such a file, is damaged, or would take unreasonable memory or time.
    """
    with about_file(path), OpenFile(Path(path)) as file:
        yield _read(file)


def _read(file: OpenFile) -> Contents:
    container = container_of(file)
    if container == "safetensors":
        payload, metadata = read_safetensors(file)
        sealed = seal.check_metadata(file, metadata)
        return Contents(file, container, payload, () if sealed else (NO_CHECKSUMS,), metadata, sealed)
    if container == "zip":
        payload, notes, archive = read_zip(file)
        return Contents(file, container, payload, tuple(notes), sealed=seal.check_comment(file, archive.comment))
    container, payload, notes = read_pickles(file)
    return Contents(file, container, payload, tuple(notes))
