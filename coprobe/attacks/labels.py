"""Attacks as people read them."""

from __future__ import annotations

from coprobe.attacks.base import ATTACKS, parse


def label_of(spec: str) -> str:
    """An attack's label ("PGD-50" for `pgd:50`), or `clean`; what somebody's own attack is called, as it is."""
    return parse(spec, 0).label if spec.partition(":")[0] in ATTACKS else spec
