"""The hooks behind recordings and masks: show the tensor at a node to whoever wants to see it, once per pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from coprobe.errors import InputError
from coprobe.models.wrappers import unwrapped
from coprobe.nodes.address import Node, network_of
from coprobe.nodes.functions import FUNCTIONS, Listener, See, belongs_to_its_caller, shown


@contextmanager
def watch(model: nn.Module, sees: Sequence[tuple[Node, See]], *, replaces: bool = False) -> Iterator[None]:
    """Show the tensor at each node to its `See`, in every pass inside the block; no hook outlives it.

    Args:
        model: any module.
        sees: resolved nodes of this model, each with who is to see it.
        replaces: what a `See` returns goes on through the network instead. Then modules that run once more outside a
            pass (activation checkpointing) are shown too, or the gradient would be that of another network.

    Raises:
        InputError: the model is wrapped; in a pass: a node that passes no tensor, that a pass comes by twice or
            not at all.
    """
    if not sees:
        yield
        return
    if unwrapped(model) is not model:
        kind = type(model).__name__
        raise InputError(f"the model is inside a {kind}, which passes by hooks; take it out with coprobe.wrap(model)")
    network = network_of(model)
    visits = _Visits([node for node, _ in sees], replaces)
    at_modules: dict[tuple[nn.Module, bool], list[tuple[Node, See]]] = defaultdict(list)
    at_calls: dict[tuple[str, str, int], list[See]] = defaultdict(list)
    paths = {module: path for path, module in network.named_modules()}  # a module of two names is heard under its first
    for node, see in sees:
        if node.call is None:
            at_modules[node.module, node.at_input].append((node, see))
        else:
            function, number = node.call
            at_calls[paths[node.module], function, number].append(visits.counted(node, see))
    with ExitStack() as block:
        block.callback(network.register_forward_pre_hook(visits.begin).remove)
        for (module, at_input), visitors in at_modules.items():
            block.enter_context(_hooked(module, at_input, visitors, visits))
        if at_calls:
            listener = Listener(
                network,
                lambda call: at_calls.get((call.owner, call.function, call.number), ()),
                owners={owner for owner, *_ in at_calls},
                replaces=replaces,
            )
            block.enter_context(listener.attached())
        # Not `always_call`: torch.compile would compile anew for every block, and `begin` clears up what is left.
        block.callback(network.register_forward_hook(visits.end).remove)
        yield


class _Visits:
    """Which nodes the pass of the network that is under way has come by."""

    def __init__(self, nodes: Sequence[Node], replaces: bool) -> None:
        self._nodes = nodes
        self.replaces = replaces
        self._running = False
        self._visited: set[str] = set()

    def begin(self, network: nn.Module, inputs: Any) -> None:
        self._running = True
        self._visited.clear()

    def end(self, network: nn.Module, inputs: Any, output: Any) -> None:
        self._running = False
        for node in self._nodes:
            if node.name not in self._visited:
                raise InputError(f"node '{node.name}': no pass comes by it; 'coprobe nodes' lists places that it does")

    def counted(self, node: Node, see: See) -> See:
        """`see`, for one call per pass."""

        def visit(activation: Tensor) -> Tensor | None:
            if not self._running:
                return see(activation) if self.replaces else None
            if node.name in self._visited:
                raise InputError(f"node '{node.name}': that module is called 2 times in a pass; {_single_call(node)}")
            self._visited.add(node.name)
            return see(activation)

        return visit


def _single_call(node: Node) -> str:
    """What to write for a node on a module that is called more than once."""
    kind = type(node.module).__name__.lower().removesuffix("6")
    function = {name.replace("_", ""): name for name in FUNCTIONS}.get(kind)
    if function is None or not belongs_to_its_caller(node.module):
        return "name a place inside it; 'coprobe nodes' lists them"
    around = node.path.rpartition(".")[0]
    return f"name one call: {around}#{function}1, {around}#{function}2"


@contextmanager
def _hooked(module: nn.Module, at_input: bool, visitors: Sequence[tuple[Node, See]], visits: _Visits) -> Iterator[None]:
    """Show the module's output, or its first input, to the visitors."""
    sees = [visits.counted(node, see) for node, see in visitors]
    node = visitors[0][0]
    beside: list[Tensor] = []

    def of_input(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (shown(_tensor(node, inputs[0] if inputs else None), sees), *inputs[1:])

    def set_aside(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        beside[:] = inputs[:1]
        return (inputs[0].clone(), *inputs[1:]) if inputs else None

    def of_output(module: nn.Module, inputs: Any, output: Any) -> Tensor:
        replaced = shown(_tensor(node, output), sees)
        return beside.pop().copy_(replaced) if beside else replaced

    with ExitStack() as handles:
        if at_input:
            handles.callback(module.register_forward_pre_hook(of_input).remove)
        else:
            # As for functions that work in place: the caller may ignore what the module returns.
            if visits.replaces and getattr(module, "inplace", False):
                handles.callback(module.register_forward_pre_hook(set_aside).remove)
            handles.callback(module.register_forward_hook(of_output).remove)
        yield


def _tensor(node: Node, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        what = type(value).__name__
        raise InputError(f"node '{node.name}': '{node.path}' passes a {what}, not a tensor; choose another node")
    return value
