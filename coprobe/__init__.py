"""coprobe: probe adversarially trained checkpoints for catastrophic overfitting, channel by channel."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from coprobe._version import __version__

if TYPE_CHECKING:
    from coprobe import attacks, metrics
    from coprobe import data as datasets
    from coprobe.checkpoint import Checkpoint, load, wrap
    from coprobe.data import Dataset
    from coprobe.nodes import mask
    from coprobe.probe import Probe

__all__ = ["Checkpoint", "Dataset", "Probe", "__version__", "attacks", "datasets", "load", "mask", "metrics", "wrap"]

#: Where each public name is: a module of the package, and the name in it; without one, the module itself.
_HOMES = {
    "Checkpoint": "checkpoint.Checkpoint",
    "Dataset": "data.Dataset",
    "Probe": "probe.Probe",
    "attacks": "attacks",
    "datasets": "data",
    "load": "checkpoint.load",
    "mask": "nodes.mask",
    "metrics": "metrics",
    "wrap": "checkpoint.wrap",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for, so that `coprobe --help` is quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'coprobe' has no attribute '{name}'")
    module, _, within = _HOMES[name].partition(".")
    home = importlib.import_module(f"coprobe.{module}")
    return getattr(home, within) if within else home


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
