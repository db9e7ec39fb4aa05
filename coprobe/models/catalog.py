"""The table of architectures: build one by name, or find the one that a file's weights belong to."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from coprobe.errors import InputError
from coprobe.registry import Registry

EXAMPLES_SHOWN = 5


class Network(nn.Module):
    """What every architecture offers beside its forward pass, images N×C×H×W to logits N×classes.

    Each ReLU is a module of its own, called once per forward pass, never in place, and `named_modules()`
    lists the ReLUs in the order of execution.

    Attributes:
        min_image_size: the smallest side in pixels at which every stage still has a position to look at.
        node_table: the nodes A…E to module paths, each an `nn.ReLU`.
        num_classes: the number of logits.
        in_channels: the number of image channels.
    """

    min_image_size: ClassVar[int]
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
    """

    build: Callable[..., Network]
    read_args: Callable[[Mapping[str, torch.Tensor]], dict[str, Any]]


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
            raise InputError(
                f"{name}={value!r} is not {kind}; {arch} takes (with defaults) {allowed}",
            )
    return ARCHITECTURES[arch].build(**arch_args)


def defaults(arch: str) -> dict[str, Any]:
    """The arguments of an architecture and their default values; raises `InputError` for an unknown one."""
    parameters = inspect.signature(ARCHITECTURES[arch].build).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def mismatches(network: nn.Module, state_dict: Mapping[str, torch.Tensor]) -> list[str]:
    """Why `state_dict` can't be loaded into `network`: one line per missing, unexpected or misshapen weight.

    Absent `num_batches_tracked` counters, which old files don't have, are no reason.

    Args:
        network: on any device, the meta device included.
        state_dict: weight names to tensors.
    """
    own = network.state_dict()
    missing = [
        f"missing {name} ({_shape(weight)})"
        for name, weight in own.items()
        if name not in state_dict and not name.endswith(".num_batches_tracked")
    ]
    unexpected = [f"unexpected {name} ({_shape(w)})" for name, w in state_dict.items() if name not in own]
    misshapen = [
        f"{name} is {_shape(weight)} instead of {_shape(own[name])}"
        for name, weight in state_dict.items()
        if name in own and weight.shape != own[name].shape
    ]
    return missing + unexpected + misshapen


def infer(state_dict: Mapping[str, torch.Tensor]) -> tuple[str, dict[str, Any]]:
    """The architecture whose weights have exactly the names and shapes of `state_dict`, and its arguments.

    What leaves no trace in names and shapes (the shortcut of preact-resnet18) is not among the arguments.

    Raises:
        InputError: none has; the message names the nearest one and what differs.
    """
    compared: dict[str, list[str]] = {}
    for entry in ARCHITECTURES.entries():
        try:
            arch_args = entry.value.read_args(state_dict)
        except (KeyError, IndexError):  # IndexError: the name is there, on a tensor of fewer dimensions
            continue
        with torch.device("meta"):
            network = entry.value.build(**arch_args)
        compared[entry.name] = mismatches(network, state_dict)
        if not compared[entry.name]:
            return entry.name, arch_args
    raise InputError(f"the weights fit no known architecture: {_nearest(compared, state_dict)}; pass --arch NAME")


def _nearest(compared: Mapping[str, list[str]], state_dict: Mapping[str, torch.Tensor]) -> str:
    if not compared:
        first = ", ".join([*list(state_dict)[:EXAMPLES_SHOWN], "…"])
        return (
            f"tried {', '.join(ARCHITECTURES)}, and none finds its first and last layer "
            f"among the {len(state_dict)} names ({first})"
        )
    name = min(compared, key=lambda candidate: len(compared[candidate]))
    differences = compared[name]
    examples = ", ".join(differences[:EXAMPLES_SHOWN]) + (" …" if len(differences) > EXAMPLES_SHOWN else "")
    return (
        f"nearest is {name}, where {len(differences)} names or shapes differ ({examples}); tried {', '.join(compared)}"
    )


def _shape(weight: torch.Tensor) -> str:
    return "×".join(map(str, weight.shape)) or "scalar"
