"""Which channels are set to zero: the mask of Eq. 7 as a value, and as a block in which it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def mask(model: nn.Module, channels: Mapping[str, int | Sequence[int]] | ChannelMask) -> AbstractContextManager[None]:
    """Set channels of a network to zero inside a with block, in evaluation and in training; see `nodes.masked`.

    The model is exactly as before afterwards, also after an exception. Blocks can be nested, and then all masks hold.
    Only the thread that opened the block may run the model in it.

    Args:
        model: any module, also inside a `Checkpoint`'s classifier; not in wrappers of torch.compile and the like.
        channels: by the name of a node (`A` … `E`, `layer1.0`, `layer1.0#relu2`) the numbers of its channels; or a mask
            as `Probe.mask` returns it.

    Raises:
        InputError: no such node; in a forward pass, no such channel, or another thread.

    Example:
        >>> with coprobe.mask(model, {"layer1.0": [3, 7], "conv1": 5}):
        ...     logits = model(images)
    """
    if isinstance(channels, ChannelMask):
        return channels.applied(model)
    return masked(model, {node: [one] if isinstance(one, int) else one for node, one in channels.items()})
