"""What the name of a node means in a network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from coprobe.errors import InputError, unknown
from coprobe.models.classifier import Classifier
from coprobe.models.wrappers import unwrapped
from coprobe.nodes.functions import FUNCTIONS, belongs_to_its_caller

_CALL = re.compile(r"([a-z_]+)([1-9][0-9]*)")


@dataclass(frozen=True)
class Node:
    """A resolved node.

    Attributes:
        name: as the person gave it.
        path: of the module that it sits on; empty for the network itself.
        module: that module.
        around: the module whose layers tell which axis of the activation holds the channels.
        at_input: whether it is the module's input instead of its output.
        call: instead of the module's output, that of an activation function that the module itself calls: its
            name, and the how manieth call of it in a pass.
        channel: the only channel that is meant; None for all.
    """

    name: str
    path: str
    module: nn.Module
    around: nn.Module
    at_input: bool = False
    call: tuple[str, int] | None = None
    channel: int | None = None

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
    return _apart(model)[0]


def node_table(model: nn.Module) -> dict[str, str]:
    """The nodes `A` … `E` as names without letters: the network's own table, else the classifier's guess, else {}."""
    _, own, guessed = _apart(model)
    return dict(own or guessed)


def is_guessed(model: nn.Module) -> bool:
    """Whether `A` … `E` are a guess, since the network has no table of its own."""
    _, own, guessed = _apart(model)
    return bool(guessed) and not own


def _apart(model: nn.Module) -> tuple[nn.Module, dict[str, str], dict[str, str]]:
    """The network, its own node table, and the guess that came with it."""
    model = unwrapped(model)
    network, guessed = (model.network, model.node_table) if isinstance(model, Classifier) else (model, {})
    return network, getattr(network, "node_table", {}), guessed


def resolve(model: nn.Module, name: str) -> Node:
    """Find the node called `name` in `model`; whether the channel or the call is there is seen in a forward pass.

    Raises:
        InputError: there is no such place; the nearest names are offered.
    """
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
    module = modules[path]
    around = modules[path.rpartition(".")[0]] if belongs_to_its_caller(module) else module
    node = Node(name, path, module, around, bool(sides), channel=channel)
    return _at_call(node, called) if sharp else node


def _at_call(node: Node, called: str) -> Node:
    match = _CALL.fullmatch(called)
    if match is None or match[1] not in FUNCTIONS:
        raise InputError(
            f"node '{node.name}': '{called}' is no call of an activation function; write relu1 for the first ReLU, "
            f"or another of {', '.join(FUNCTIONS)} with its number"
        )
    if node.at_input:
        raise InputError(f"node '{node.name}': a call of a function is probed at its output; leave out ':in'")
    if node.path and belongs_to_its_caller(node.module):
        around = node.path.rpartition(".")[0]
        raise InputError(
            f"node '{node.name}': an activation module's calls are those of the module around it; write "
            f"{node.path}, or {around}#{called}"
        )
    return replace(node, around=node.module, call=(match[1], int(match[2])))


def channel_axis(around: nn.Module, shape: Sequence[int]) -> int:
    """Which axis of an activation of this shape holds the channels: 1, or the last one of what linear layers compute.

    Those see (batch, tokens, features), and in Swin and ConvNeXt (batch, height, width, features). The latter is told
    by sizes: the last is one that linear layers or layer norms around the activation have, and the second is none
    that convolutions or batch norms there have.
    """
    if len(shape) == 3:
        return 2
    if len(shape) != 4:
        return 1
    of_convolutions: set[int] = set()
    of_linear_layers: set[int] = set()
    for module in around.modules():
        if isinstance(module, nn.Conv2d):
            of_convolutions |= {module.in_channels, module.out_channels}
        elif isinstance(module, nn.BatchNorm2d):
            of_convolutions.add(module.num_features)
        elif isinstance(module, nn.Linear):
            of_linear_layers |= {module.in_features, module.out_features}
        elif isinstance(module, nn.LayerNorm):
            of_linear_layers.add(module.normalized_shape[-1])
    return 3 if shape[3] in of_linear_layers and shape[1] not in of_convolutions else 1


def channels_first(activation: Tensor, around: nn.Module) -> Tensor:
    """The activation with its channels at axis 1; one without channels as it is."""
    return activation.movedim(channel_axis(around, activation.shape), 1) if activation.dim() > 1 else activation


def describe_shape(shape: Sequence[int]) -> str:
    """The shape of an activation, channels first, in words: `64 channels × 8 × 8`, `768 features × 197 tokens`."""
    count, *positions = shape
    if len(positions) == 1:
        return f"{count} features × {positions[0]} tokens"
    return " × ".join([f"{count} channels", *map(str, positions)])
