"""Which channels are set to zero: the mask of Eq. 7 as a value, and as a block in which it holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from coprobe.errors import InputError
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


def mask(model: nn.Module, channels: Mapping[str, Any] | ChannelMask) -> AbstractContextManager[None]:
    """Set channels of a network to zero inside a with block, in evaluation and in training; see `nodes.masked`.

    The model is exactly as before afterwards, also after an exception. Blocks can be nested, and then all masks hold.
    Only the thread that opened the block may run the model in it.

    Args:
        model: any module, also inside a `Checkpoint`'s classifier; not in wrappers of torch.compile and the like.
        channels: by the name of a node (`A` … `E`, `layer1.0`, `layer1.0#relu2`) the number of a channel, or several
            in a sequence, an array or a tensor; or a mask as `Probe.mask` returns it.

    Raises:
        InputError: no such node; something else than whole numbers, such as booleans; in a forward pass, no such
            channel, or another thread.

    Example:
        >>> with coprobe.mask(model, {"layer1.0": [3, 7], "conv1": 5}):
        ...     logits = model(images)
    """
    if isinstance(channels, ChannelMask):
        return channels.applied(model)
    return masked(model, {node: _numbers(node, given) for node, given in channels.items()})


def _numbers(node: str, given: Any) -> list[int]:
    """The numbers of channels, however they come."""
    many = given.tolist() if hasattr(given, "tolist") else given
    many = many if isinstance(many, Iterable) and not isinstance(many, str) else [many]
    numbers = [one.item() if hasattr(one, "item") else one for one in many]
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in numbers):
        raise InputError(
            f"channels of '{node}': give their whole numbers, as in [3, 7]; of a tensor of booleans, "
            "flags.nonzero().flatten()"
        )
    return numbers
