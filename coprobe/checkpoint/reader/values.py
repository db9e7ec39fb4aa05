"""What a checkpoint file holds before any tensor is read: plain data, labels, and where the bytes of tensors lie.

Nothing here can run: the name of a function is text, and an object is what its pickle says about it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

MOST_DIMENSIONS = 64
_FAR = 2**62


@dataclass(frozen=True)
class GlobalName:
    """A class or function that a pickle names, for example `torch.FloatStorage`; only ever a label."""

    name: str


@dataclass(eq=False)
class OpaqueObject:
    """An object of a class that is known by name only.

    Attributes:
        name: of its class, or of the function that would have made it.
        args: what that would have been called with.
        state: what it would have been restored from (`BUILD`): mostly its attributes by name.
        items: its elements, if it is also a list or a mapping (then a dict).
    """

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] | dict[Any, Any] | None = None

    @property
    def attributes(self) -> dict[str, Any]:
        """Its attributes by name, as far as the file gives them."""
        parts = self.state if isinstance(self.state, tuple) else (self.state,)
        dicts = [part for part in parts if isinstance(part, dict)]
        return {key: value for part in dicts for key, value in part.items() if isinstance(key, str)}


@dataclass(eq=False)
class Storage:
    """The bytes that one or more tensors are views of.

    Attributes:
        key: its name in the file.
        dtype: of its elements; None for bytes that each tensor reads in its own way.
        offset: of its first byte in the file; -1 until it is known (legacy files say it at their end).
        nbytes: its length.
        swapped: whether the bytes of each element are in the other order than this machine's.
        held: the bytes themselves, where they stand within the pickle.
    """

    key: str
    dtype: torch.dtype | None
    offset: int
    nbytes: int
    swapped: bool = False
    held: bytes | None = field(default=None, repr=False)


@dataclass(eq=False)
class TensorSpec:
    """A tensor that can be read from the file: a view that is known to stay within its storage.

    Attributes:
        dtype: of its elements.
        shape: its shape.
        stride: steps between elements, in elements.
        start: its first element, counted from that of the storage.
        storage: where its bytes are.
        conjugated, negated: lazy views of torch, resolved when it is read.
    """

    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    start: int
    storage: Storage
    conjugated: bool = False
    negated: bool = False

    def numel(self) -> int:
        """Number of elements."""
        return self.shape.numel()

    @property
    def is_floating_point(self) -> bool:
        """Whether its elements are real floating-point numbers."""
        return self.dtype.is_floating_point


@dataclass(eq=False)
class UnreadableTensor:
    """A tensor that is not read, and why: "reaches outside its storage", "is sparse"."""

    reason: str
    shape: torch.Size = field(default_factory=torch.Size)


def contiguous_stride(shape: tuple[int, ...], *, column_major: bool = False) -> tuple[int, ...]:
    """Steps between the elements of a tensor without gaps, in elements."""
    stride, step = [], 1
    for size in shape if column_major else shape[::-1]:
        stride.append(step)
        step *= size
    return tuple(stride if column_major else stride[::-1])


def view_fault(shape: Any, stride: Any, start: Any, stored: int) -> str:
    """Why no tensor of this geometry lies in a storage of `stored` elements; empty if one does.

    The geometry is what a file says, so it may be anything.
    """
    if not (isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride) <= MOST_DIMENSIONS):
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
