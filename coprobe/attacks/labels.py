"""Attacks as people read them."""

from __future__ import annotations

from coprobe.attacks.base import parse
from coprobe.attacks.examples import CLEAN


def label_of(spec: str) -> str:
    """An attack's label ("PGD-50" for `pgd:50`), or `clean`; raises what `parse` raises."""
    return CLEAN if spec == CLEAN else parse(spec, 0).label
