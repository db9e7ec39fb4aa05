"""The architecture that weights belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coprobe.models import Shaped, mismatches, proposals


def recognised(state_dict: Mapping[str, Shaped]) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments of the first architecture that fits exactly."""
    fitting = ((arch, arch_args) for arch, arch_args, net in proposals(state_dict) if not mismatches(net, state_dict))
    return next(fitting, None)
