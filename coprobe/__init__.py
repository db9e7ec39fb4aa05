"""coprobe: probe adversarially trained checkpoints for catastrophic overfitting, channel by channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from coprobe._version import __version__

if TYPE_CHECKING:
    from coprobe.checkpoint import Checkpoint, load

__all__ = ["Checkpoint", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for, so that `coprobe --help` is quick."""
    if name in ("Checkpoint", "load"):
        from coprobe import checkpoint

        return getattr(checkpoint, name)
    raise AttributeError(f"module 'coprobe' has no attribute '{name}'")
