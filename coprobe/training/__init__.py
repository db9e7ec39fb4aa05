"""Training: one loop, its recipe, the methods and the regularizers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from coprobe.training.recipe import PRESETS, Recipe

if TYPE_CHECKING:
    from coprobe.training.methods import METHODS, Method, make_method
    from coprobe.training.run import Run
    from coprobe.training.trainer import TrainingCallback, train

__all__ = ["METHODS", "PRESETS", "Method", "Recipe", "Run", "TrainingCallback", "make_method", "train"]

_HOMES = {
    "METHODS": "methods",
    "Method": "methods",
    "make_method": "methods",
    "Run": "run",
    "TrainingCallback": "trainer",
    "train": "trainer",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for, so that `coprobe train --help` is quick."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"coprobe.training.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'coprobe.training' has no attribute '{name}'")
