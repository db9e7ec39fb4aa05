"""Checkpoint files of any origin, read without running, importing or calling anything that stands in them."""

from __future__ import annotations

from coprobe.checkpoint.reader.contents import Contents, open_checkpoint
from coprobe.checkpoint.reader.values import GlobalName, OpaqueObject, Storage, TensorSpec, UnreadableTensor

__all__ = ["Contents", "GlobalName", "OpaqueObject", "Storage", "TensorSpec", "UnreadableTensor", "open_checkpoint"]
