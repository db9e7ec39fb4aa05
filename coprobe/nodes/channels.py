"""Where the channels of an activation are: as declared, as a person says, or as seen in a pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from coprobe.errors import InputError
from coprobe.nodes.address import Node, network_of
from coprobe.nodes.axes import ChannelTracker
from coprobe.nodes.functions import Hook
from coprobe.nodes.hooks import hooks_at

#: By network and place: the axis that was seen, None where it could not be told.
_SEEN: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], int | None]] = WeakKeyDictionary()


@contextmanager
def channels_first(model: nn.Module, hooks: Sequence[tuple[Node, Hook]], *, replaces: bool = False) -> Iterator[None]:
    """`hooks_at`, for hooks that take and return the activation with its channels at axis 1.

    Where neither the network declares the axis nor a person has said it, it is found out before the first pass, by
    one more with the first image alone, and remembered for this network.

    Raises:
        InputError: as `hooks_at`; in a pass: a node whose axis can't be told, or that has no such axis.
    """
    nodes = {_place(node): node for node, _ in hooks if node.axis is None}
    network = network_of(model) if hooks else model
    seen = _SEEN.setdefault(network, {})
    tracker: list[ChannelTracker] = []

    def begin(network: nn.Module, args: Any, kwargs: Any) -> None:
        if nodes.keys() <= seen.keys() or tracker:
            return
        tracker.append(ChannelTracker())
        try:
            with tracker[0].following(network):
                args, kwargs = tree_map(first_image, (args, kwargs))
                network(*args, **kwargs)
        finally:
            tracker.clear()

    def first_image(argument: Any) -> Any:
        if not isinstance(argument, Tensor) or not argument.dim():
            return argument
        image = argument[:1].clone() if len(argument) else argument.new_zeros(1, *argument.shape[1:])
        tracker[0].declare(image, 1 if image.dim() == 4 else None)
        return image

    def moved(node: Node, hook: Hook) -> Hook:
        def run(activation: Tensor) -> Tensor | None:
            if tracker:
                seen.setdefault(_place(node), tracker[0].axis(activation))
                return None
            if activation.dim() < 2:
                return hook(activation)
            axis = axis_at(node, activation.shape, seen.get(_place(node)))
            if axis is None:
                raise InputError(
                    f"node '{node.whole}': can't tell which axis of its activations ({_words(activation.shape)}) holds "
                    f"the channels; say --channel-axis {node.whole}=AXIS, in Python wrap(…, channel_axis=AXIS)"
                )
            replacement = hook(activation.movedim(axis, 1))
            return None if replacement is None else replacement.movedim(1, axis)

        return run

    with hooks_at(model, [(node, moved(node, hook)) for node, hook in hooks], replaces=replaces):
        # First of all, so that the pass with one image is over before other blocks mark that theirs begins.
        first = network.register_forward_pre_hook(begin, prepend=True, with_kwargs=True) if nodes else None
        try:
            yield
        finally:
            if first:
                first.remove()


def axis_at(node: Node, shape: Sequence[int], seen: int | None) -> int | None:
    """At which axis an activation of this shape (batch, …) has its channels: as said of the node, else as seen.

    Raises:
        InputError: the axis that was said is none of an activation of this shape.
    """
    if len(shape) <= 2:
        return 1
    if node.axis is None:
        return seen
    axis = node.axis if node.axis > 0 else node.axis + len(shape)
    if not 1 <= axis < len(shape):
        last = len(shape) - 1
        raise InputError(
            f"node '{node.whole}': axis {node.axis} of its activations ({_words(shape)}) can't hold the channels; "
            f"give 1 to {last}"
        )
    return axis


def _place(node: Node) -> tuple[Any, ...]:
    return node.path, node.at_input, node.call


def _words(shape: Sequence[int]) -> str:
    return "×".join(["batch", *map(str, shape[1:])])
