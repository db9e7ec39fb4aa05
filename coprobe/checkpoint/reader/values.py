"""What stands in a checkpoint file before any tensor is read: labels, descriptions, and where the bytes lie.

Nothing here can run: a name is text, an object is what its pickle said about it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Name:
    """A global that a pickle named, for example `torch.FloatStorage`; only ever a label."""

    name: str


@dataclass(eq=False)
class Foreign:
    """An object of a class that is only known by name.

    Attributes:
        name: of its class or of the function that would have made it.
        args: what that would have been called with.
        state: what it would have been restored from (`BUILD`): mostly its attributes by name.
        items: its elements, if it is a list or a mapping besides (a dict then).
    """

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] | dict[Any, Any] | None = None

    @property
    def attributes(self) -> dict[str, Any]:
        """Its attributes by name, as far as the file gives them."""
        parts = self.state if isinstance(self.state, tuple) else (self.state,)
        return {key: value for part in parts if isinstance(part, dict) for key, value in part.items() if _is_text(key)}


@dataclass(eq=False)
class Storage:
    """A stretch of the file that tensors look into.

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
class Stored:
    """A tensor that lies in the file and can be read: its geometry is known to stay within its storage.

    Attributes:
        dtype: of its elements.
        shape: its shape.
        stride: steps between elements, in elements.
        start: its first element, counted from that of the storage.
        storage: where its bytes are.
        conjugated, negated: views that are to be resolved when it is read.
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

    def dim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def is_floating_point(self) -> bool:
        """Whether its elements are real floating-point numbers."""
        return self.dtype.is_floating_point

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return self.numel() * self.dtype.itemsize


@dataclass(eq=False)
class Unsound:
    """A tensor that is not read, and why: "reaches outside its storage", "is sparse"."""

    reason: str
    shape: torch.Size = field(default_factory=torch.Size)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
