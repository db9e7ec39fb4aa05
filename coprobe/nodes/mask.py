"""Which channels are set to zero: the mask of Eq. 7 as a value."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from torch import nn

from coprobe.nodes.recording import masked


@dataclass(frozen=True)
class ChannelMask:
    """Channels to set to zero, by node, and the reason in words; `draw` numbers the draws of a random mask."""

    channels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    reason: str = "none"
    draw: int = 0

    @property
    def count(self) -> int:
        """Number of masked channels over all nodes."""
        return sum(len(indices) for indices in self.channels.values())

    @property
    def masked(self) -> frozenset[tuple[str, int]]:
        """Node and number of every masked channel: masks in which these are the same do the same."""
        return frozenset((node, channel) for node, channels in self.channels.items() for channel in channels)

    def applied(self, model: nn.Module) -> AbstractContextManager[None]:
        """Mask `model` inside a with block; see `nodes.masked`."""
        return masked(model, self.channels)


NO_MASK = ChannelMask()
