"""Places in a network: name one, record what passes there, mask channels there.

A node is named `A` … `E` (the five places of the paper, from the network's own node table) or by a module
path: `layer1.0` is the output of that module, `layer1.0:in` its input. Activations have the shape
(batch, channels, height, width), or (batch, channels) behind a linear layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from coprobe.engine import frozen
from coprobe.errors import InputError, RunError, unknown
from coprobe.models.classifier import Classifier


@dataclass(frozen=True)
class Node:
    """A resolved node: `name` as the person gave it, the module it sits on, and at which side of it."""

    name: str
    path: str
    module: nn.Module
    at_input: bool = False

    def hook(self, see: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Call `see` with the tensor at this node in every forward pass; what it returns, if anything, replaces it."""

        def of_output(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
            return see(self._tensor(output))

        def of_input(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            seen = see(self._tensor(inputs[0] if inputs else None))
            return None if seen is None else (seen, *inputs[1:])

        if self.at_input:
            return self.module.register_forward_pre_hook(of_input)
        return self.module.register_forward_hook(of_output)

    def _tensor(self, value: Any) -> Tensor:
        if not isinstance(value, Tensor):
            what = type(value).__name__
            raise InputError(f"node '{self.name}': '{self.path}' passes a {what}, not a tensor; choose another node")
        return value


def network_of(model: nn.Module) -> nn.Module:
    """The network inside a `Classifier`, whose module paths people know; any other module is its own network."""
    return model.network if isinstance(model, Classifier) else model


def node_table(model: nn.Module) -> dict[str, str]:
    """The paper's five nodes `A` … `E` of this network as module paths; empty if it has no such table."""
    return dict(getattr(network_of(model), "node_table", {}))


def resolve(model: nn.Module, name: str) -> Node:
    """Find the node called `name` in `model`.

    Raises:
        InputError: there is no such place; the nearest names are offered.
    """
    network = network_of(model)
    table = node_table(model)
    given, _, side = name.partition(":")
    if side not in ("", "in"):
        raise InputError(f"node '{name}': '{side}' is no side of a module; write {given} or {given}:in")
    path = table.get(given, given)
    modules = dict(network.named_modules())
    if not path or path not in modules:
        raise unknown("node", name, [*table, *(p for p in modules if p)])
    return Node(name, path, modules[path], at_input=side == "in")


class Recording(dict[str, Tensor]):
    """What was last seen at each node, by the name it was asked for."""

    def __missing__(self, name: str) -> Tensor:
        raise RunError(f"node '{name}' saw nothing: it was not asked for, or no forward pass called that module")


@contextmanager
def record(model: nn.Module, names: Iterable[str]) -> Iterator[Recording]:
    """Record the activations at several nodes in one forward pass.

    What is recorded is a copy (an in-place operation afterwards changes nothing) that keeps the graph, so a
    loss can be taken at it. Recording leaves the values that flow through the network as they are. All
    hooks are gone after the block, also after an exception.

    Yields:
        A `Recording`; a later call of the module replaces its tensor, also within one forward pass.

    Raises:
        InputError: an unknown node, or one that passes no tensor.
    """
    found = [resolve(model, name) for name in names]
    seen = Recording()

    def keep_as(name: str) -> Callable[[Tensor], None]:
        def keep(activation: Tensor) -> None:
            seen[name] = activation.clone()

        return keep

    with ExitStack() as handles:
        for node in found:
            handles.callback(node.hook(keep_as(node.name)).remove)
        yield seen


@contextmanager
def masked(model: nn.Module, channels: Mapping[str, Sequence[int]]) -> Iterator[None]:
    """Set whole channels to zero at the given nodes, in every forward pass inside the block (Eq. 7).

    Args:
        model: any module; it is left untouched afterwards, also after an exception.
        channels: node name to channel indices (an empty sequence masks nothing).

    Raises:
        InputError: an unknown node, or, during a forward pass, a channel that the node does not have.
    """
    found = [(resolve(model, name), tuple(indices)) for name, indices in channels.items()]

    def zero(node: Node, indices: tuple[int, ...]) -> Callable[[Tensor], Tensor | None]:
        def apply(activation: Tensor) -> Tensor | None:
            if activation.dim() < 2:
                raise InputError(f"node '{node.name}' has no channels: its shape is {tuple(activation.shape)}")
            count = activation.shape[1]
            wrong = [k for k in indices if not 0 <= k < count]
            if wrong:
                raise InputError(f"node '{node.name}' has channels 0 to {count - 1}, not {wrong[0]}")
            if not indices:
                return None
            hidden = torch.zeros(count, dtype=torch.bool, device=activation.device)
            hidden[list(indices)] = True
            return activation.masked_fill(hidden.view(-1, *[1] * (activation.dim() - 2)), 0)

        return apply

    with ExitStack() as handles:
        for node, indices in found:
            handles.callback(node.hook(zero(node, indices)).remove)
        yield


@dataclass(frozen=True)
class Place:
    """A post-ReLU place of a network: where, its letter if it is one of the five, and its shape for one image."""

    path: str
    letter: str
    shape: tuple[int, ...]


def places(model: nn.Module, image_shape: tuple[int, int, int]) -> list[Place]:
    """Every post-ReLU place in the order of execution, and every other place that the node table names.

    Args:
        model: any module.
        image_shape: (channels, height, width) of the images it takes.
    """
    network = network_of(model)
    letters = {path: letter for letter, path in node_table(model).items()}
    paths = [path for path, module in network.named_modules() if isinstance(module, nn.ReLU) or path in letters]
    parameter = next(model.parameters(), torch.zeros(0))
    image = torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype)
    with frozen(model), torch.no_grad(), record(model, paths) as seen:
        model(image)
    return [Place(path, letters.get(path, ""), tuple(activation.shape[1:])) for path, activation in seen.items()]
