"""What the name of a node means in a network."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from coprobe.errors import InputError, unknown
from coprobe.models.classifier import Classifier
from coprobe.models.wrappers import unwrapped
from coprobe.nodes.functions import FUNCTIONS, belongs_to_its_caller

#: What is said of a network without nodes `A` … `E`.
NO_NODES = "no activation function is seen in this network (in scripted code none can be), so it has no nodes A…E"

_CALL = re.compile(r"([a-z_]+)([1-9][0-9]*)")


@dataclass(frozen=True)
class Node:
    """A resolved node.

    Attributes:
        name: as the person gave it.
        path: of the module that it sits on; empty for the network itself.
        module: that module.
        at_input: whether it is the module's input instead of its output.
        call: instead of the module's output, that of an activation function that the module itself calls: the
            function's name, and which call of it in a pass, from 1.
        channel: the only channel that is meant; None for all.
        axis: at which the activation has its channels, if the network declares it or a person has said so.
        declared: the network itself names this place, so its activations have a row for each image.
    """

    name: str
    path: str
    module: nn.Module
    at_input: bool = False
    call: tuple[str, int] | None = None
    channel: int | None = None
    axis: int | None = None
    declared: bool = False

    @property
    def whole(self) -> str:
        """The name without the channel."""
        return self.name if self.channel is None else self.name.rpartition(":")[0]


def network_of(model: nn.Module) -> nn.Module:
    """The network inside a `Classifier`, whose module paths people know; any other module is its own network.

    Wrappers of torch.compile, DataParallel and DistributedDataParallel are taken off.

    Raises:
        InputError: a wrapper that can't be taken off (FSDP, TorchScript, one inside the network).
    """
    return _apart(unwrapped(model))[0]


def node_table(model: nn.Module) -> dict[str, str]:
    """The nodes `A` … `E` as names without letters: the network's own table, else the classifier's guess, else {}."""
    _, own, guessed = _apart(unwrapped(model))
    return dict(own or guessed)


def is_guessed(model: nn.Module) -> bool:
    """Whether `A` … `E` are a guess, since the network has no table of its own."""
    _, own, guessed = _apart(unwrapped(model))
    return bool(guessed) and not own


def _apart(model: nn.Module) -> tuple[nn.Module, dict[str, str], dict[str, str]]:
    """The network, its own node table, and the guess that came with it."""
    network, guessed = (model.network, model.node_table) if isinstance(model, Classifier) else (model, {})
    return network, getattr(network, "node_table", {}), guessed


def resolve(model: nn.Module, name: str) -> Node:
    """Find the node called `name` in `model`; whether the channel or the call is there is seen in a forward pass.

    Raises:
        InputError: there is no such place; the nearest names are offered.
    """
    model = unwrapped(model)
    network, own, guessed = _apart(model)
    table = own or guessed
    modules = dict(network.named_modules(remove_duplicate=False))
    given, *sides = name.split(":")
    channel = int(sides.pop()) if sides and sides[-1].isdecimal() else None
    if sides not in ([], ["in"]):
        wrong = ":".join(sides)
        write = f"write {given}, {given}:in or {given}:12"
        raise InputError(f"node '{name}': '{wrong}' is neither a side of a module nor a channel; {write}")
    address = table.get(given, given)
    path, sharp, called = address.partition("#")
    if path not in modules or not address:
        raise unknown("node", name, [*table, *(p for p in modules if p)])
    node = Node(name, path, modules[path], bool(sides), channel=channel)
    node = replace(_at_call(node, called) if sharp else node, axis=_given_axis(model, node.whole))
    own_axis = getattr(network, "node_axis", None) if address in own.values() and not sides else None
    return node if own_axis is None else replace(node, axis=own_axis if node.axis is None else node.axis, declared=True)


def _given_axis(model: nn.Module, name: str) -> int | None:
    """What a person has said of this node, or of all nodes."""
    given = getattr(model, "channel_axes", None)
    return given.get(name) if isinstance(given, Mapping) else given


def set_channel_axis(model: Classifier, axis: int | Mapping[str, int] | None) -> None:
    """Say at which axis (batch, …) the activations have their channels, at all nodes or by the names of some.

    Raises:
        InputError: an unknown node, or an axis that is none.
    """
    for name, number in axis.items() if isinstance(axis, Mapping) else [("", axis)]:
        if name and resolve(model, name).channel is not None:
            raise InputError(f"the axis of '{name}': leave out the channel")
        if number is not None and (type(number) is not int or number == 0):
            raise InputError(f"channel axis {number!r}: write a whole number, not 0, which is the axis of the images")
    model.channel_axes = axis


def _at_call(node: Node, called: str) -> Node:
    match = _CALL.fullmatch(called)
    if match is None or match[1] not in FUNCTIONS:
        raise InputError(
            f"node '{node.name}': '{called}' is no call of an activation function; write relu1 for the first ReLU, or "
            "what 'coprobe nodes' lists"
        )
    if node.at_input:
        raise InputError(f"node '{node.name}': a call of a function is probed at its output; leave out ':in'")
    if node.path and belongs_to_its_caller(node.module):
        around = node.path.rpartition(".")[0]
        raise InputError(
            f"node '{node.name}': an activation module's calls are those of the module around it; write "
            f"{node.path}, or {around}#{called}"
        )
    return replace(node, call=(match[1], int(match[2])))


def describe_shape(shape: Sequence[int], rows: int = 1) -> str:
    """The shape of an activation, channels first, in words: `64 channels × 8 × 8`, `768 features × 197 tokens`.

    Where an image has several rows of the first axis, these come behind: `64 channels × 8 × 8, 2 rows an image`.
    """
    if rows > 1:
        folded = next(number for number in range(1, len(shape)) if math.prod(shape[1 : number + 1]) == rows)
        return f"{describe_shape([shape[0], *shape[folded + 1 :]])}, {rows} rows an image"
    count, *positions = shape
    if len(positions) == 1:
        return f"{count} features × {positions[0]} tokens"
    return " × ".join([f"{count} channels", *map(str, positions)])
