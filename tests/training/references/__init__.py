"""Slow, literal references of every training method, written from the formulas; `short` has those of a few lines."""

from __future__ import annotations

import importlib
import pkgutil

from tests.training.references.common import Reference

#: Method to its reference; each file of this package adds its own.
REFERENCES: dict[str, Reference] = {}
for _module in pkgutil.iter_modules(__path__):
    REFERENCES |= getattr(importlib.import_module(f"{__name__}.{_module.name}"), "REFERENCES", {})
