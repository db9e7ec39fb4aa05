"""The network architectures, each with its node table, and the classifier that normalises in front of one.

Every module of this package is imported here, so an architecture file registers itself by being present.
"""

from __future__ import annotations

from coprobe.core.registry import discover
from coprobe.models.catalog import (
    ARCHITECTURES,
    Architecture,
    Difference,
    Network,
    Shaped,
    build,
    defaults,
    mismatches,
    proposals,
    shape_of,
)
from coprobe.models.classifier import Classifier

discover(__name__)

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Classifier",
    "Difference",
    "Network",
    "Shaped",
    "build",
    "defaults",
    "mismatches",
    "proposals",
    "shape_of",
]
