"""The table of architectures: build one by name, or find the one that a file's weights belong to."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from coprobe.core.registry import Registry
from coprobe.errors import InputError

#: How batch norm calls the number of batches that it has seen; weights from before torch 0.4.1 don't have it.
COUNTER = ".num_batches_tracked"
NAME_SHOWN = 60


class Shaped(Protocol):
    """Anything with a shape: a tensor, or one that still lies in its file."""

    @property
    def shape(self) -> torch.Size: ...


class Network(nn.Module):
    """What every architecture offers beside its forward pass, images N×C×H×W to logits N×classes.

    Each activation function is a module of its own, called once per forward pass, never in place, and
    `named_modules()` lists them in the order of execution.

    Attributes:
        min_image_size: the smallest side in pixels at which every stage still has a position to look at.
        activation: the class of the activation functions.
        node_table: the nodes A…E to module paths, each an activation function.
        node_axis: at which axis (batch, …) the activations at A…E have their channels.
        num_classes: the number of logits.
        in_channels: the number of image channels.
    """

    min_image_size: int
    activation: type[nn.Module] = nn.ReLU
    node_axis: ClassVar[int] = 1
    node_table: dict[str, str]

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_channels = in_channels


@dataclass(frozen=True)
class Architecture:
    """How to make a network, and how to read its arguments off the weights of one.

    Attributes:
        build: takes keyword-only arguments, each with a default, among them width, num_classes, in_channels.
        read_args: a state dict to those arguments; raises `KeyError` when a weight that it needs is absent.
        undecided: the arguments that leave no trace in names and shapes, with the values that they may have, the
            likeliest first.
    """

    build: Callable[..., Network]
    read_args: Callable[[Mapping[str, Shaped]], dict[str, Any]]
    undecided: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


ARCHITECTURES: Registry[Architecture] = Registry("architecture")


def build(arch: str, **arch_args: Any) -> Network:
    """A freshly initialised network.

    Args:
        arch: a name in `ARCHITECTURES`.
        arch_args: `width` (channels of the first stage), `num_classes`, `in_channels`, and what else the
            architecture takes; the rest keep their defaults.

    Raises:
        InputError: no such architecture, no such argument, or a value that it can't have.
    """
    known = defaults(arch)
    allowed = ", ".join(f"{name}={default!r}" for name, default in known.items())
    for name, value in arch_args.items():
        if name not in known:
            raise InputError(f"{arch} has no argument '{name}'; it takes (with defaults) {allowed}")
        wanted = type(known[name])
        # exact types, because bool is an int
        if type(value) is not wanted or (wanted is int and value < 1):
            kind = "a positive int" if wanted is int else f"a {wanted.__name__}"
            raise InputError(f"{name}={value!r} is not {kind}; {arch} takes (with defaults) {allowed}")
    return ARCHITECTURES[arch].build(**arch_args)


def defaults(arch: str) -> dict[str, Any]:
    """The arguments of an architecture and their default values; raises `InputError` for an unknown one."""
    parameters = inspect.signature(ARCHITECTURES[arch].build).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


@dataclass(frozen=True)
class Difference:
    """One weight that keeps a state dict from being loaded into a network.

    Attributes:
        kind: "missing", "unexpected" or "misshapen".
        name: of the weight.
        detail: its shape, or its two shapes.
    """

    kind: str
    name: str
    detail: str

    def __str__(self) -> str:
        name = self.name if len(self.name) <= NAME_SHOWN else f"{self.name[:NAME_SHOWN]}…"
        return f"{name} is {self.detail}" if self.kind == "misshapen" else f"{self.kind} {name} ({self.detail})"


def mismatches(network: nn.Module, state_dict: Mapping[str, Shaped]) -> list[Difference]:
    """Why `state_dict` can't be loaded into `network`: the missing, then the unexpected, then the misshapen weights.

    Absent `num_batches_tracked` counters, which old files don't have, are no reason.

    Args:
        network: on any device, the meta device included.
        state_dict: weight names to tensors, or to what else has a shape.
    """
    own = {name: weight for name, weight in network.state_dict().items() if isinstance(weight, torch.Tensor)}
    missing = [
        Difference("missing", name, shape_of(weight))
        for name, weight in own.items()
        if name not in state_dict and not name.endswith(COUNTER)
    ]
    unexpected = [Difference("unexpected", name, shape_of(w)) for name, w in state_dict.items() if name not in own]
    misshapen = [
        Difference("misshapen", name, f"{shape_of(weight)} instead of {shape_of(own[name])}")
        for name, weight in state_dict.items()
        if name in own and weight.shape != own[name].shape
    ]
    return missing + unexpected + misshapen


def proposals(state_dict: Mapping[str, Shaped]) -> Iterator[tuple[str, dict[str, Any], Network]]:
    """The architectures that could have such weights: name, arguments as read off them, network on the meta device.

    An architecture that does not find its first and last layer among the names, or finds impossible shapes
    there, is none of them; whether the others fit is for `mismatches` to say. What leaves no trace in names and
    shapes (the shortcut of preact-resnet18) is not among the arguments.
    """
    for entry in ARCHITECTURES.entries():
        try:
            arch_args = entry.value.read_args(state_dict)
            with torch.device("meta"):
                network = build(entry.name, **arch_args)
        # IndexError: the name is there, on a tensor of fewer dimensions; the others: sizes that no layer can have
        except (LookupError, InputError, RuntimeError, OverflowError):
            continue
        yield entry.name, arch_args, network


def shape_of(weight: Shaped) -> str:
    """Its shape as people write it: 64×3×3×3."""
    return "×".join(map(str, weight.shape)) or "scalar"
