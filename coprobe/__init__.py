"""coprobe: probe adversarially trained checkpoints for catastrophic overfitting, channel by channel."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from coprobe._version import __version__

if TYPE_CHECKING:
    from coprobe.checkpoint import Checkpoint, load, wrap
    from coprobe.nodes import mask
    from coprobe.probe import Probe

__all__ = ["Checkpoint", "Probe", "__version__", "load", "mask", "wrap"]

_HOMES = {
    "Checkpoint": "checkpoint", "load": "checkpoint", "wrap": "checkpoint", "mask": "nodes", "Probe": "probe",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for, so that `coprobe --help` is quick."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"coprobe.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'coprobe' has no attribute '{name}'")
