"""Hooks at nodes, run with the tensor that passes there, once per forward pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import current_thread
from typing import Any

import torch
from torch import Tensor, nn

from coprobe.errors import InputError
from coprobe.models.wrappers import unwrapped
from coprobe.nodes.address import Node, network_of
from coprobe.nodes.functions import FORMULA, FUNCTIONS, FunctionHooks, Hook, belongs_to_its_caller, hooked


@contextmanager
def hooks_at(model: nn.Module, hooks: Sequence[tuple[Node, Hook]], *, replaces: bool = False) -> Iterator[None]:
    """Run each hook on the tensor at its node, in every pass inside the block; no hook outlives it.

    Args:
        model: any module.
        hooks: each with a resolved node of this model.
        replaces: what a hook returns goes on through the network instead. Then hooks also run on modules that run once
            more outside a pass (activation checkpointing), or the gradient would be that of another network.

    Raises:
        InputError: the model is wrapped; in a pass: a node that passes no tensor, that a pass comes by twice or
            not at all; a pass of another thread, which would be hooked as well.
    """
    if not hooks:
        yield
        return
    if unwrapped(model) is not model:
        kind = type(model).__name__
        raise InputError(f"the model is inside a {kind}, which passes by hooks; take it out with coprobe.wrap(model)")
    network = network_of(model)
    state = _Pass([node for node, _ in hooks], replaces)
    at_modules: dict[tuple[nn.Module, bool], list[tuple[Node, Hook]]] = defaultdict(list)
    at_calls: dict[tuple[str, str, int], list[Hook]] = defaultdict(list)
    paths = {module: path for path, module in network.named_modules()}  # the first of several names
    for node, hook in hooks:
        if node.call is None:
            at_modules[node.module, node.at_input].append((node, hook))
        else:
            function, number = node.call
            at_calls[paths[node.module], function, number].append(state.once(node, hook))
    with ExitStack() as block:
        block.callback(network.register_forward_pre_hook(state.begin).remove)
        for (module, at_input), here in at_modules.items():
            block.enter_context(_at_module(module, at_input, here, state))
        if at_calls:
            functions = FunctionHooks(
                network,
                lambda call: at_calls.get((call.owner, call.function, call.number), ()),
                owners={owner for owner, *_ in at_calls},
                replaces=replaces,
                formulas=any(function == FORMULA for _, function, _ in at_calls),
            )
            block.enter_context(functions.attached())
        # Not `always_call`: torch.compile would compile anew for every block, and `begin` clears up what is left.
        block.callback(network.register_forward_hook(state.end).remove)
        yield


def refuse_tracing() -> None:
    """Raise `InputError` in a pass of torch.jit.trace, torch.export and the like: what they make keeps no hooks."""
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        raise InputError(
            "torch.jit.trace and torch.export can't take a network in a block of mask or record, since what they make "
            "knows of neither; trace or export it outside of the block"
        )


class _Pass:
    """Which nodes the pass of the network that is under way has come by."""

    def __init__(self, nodes: Sequence[Node], replaces: bool) -> None:
        self._nodes = nodes
        self.replaces = replaces
        self._thread = current_thread()
        self._running = False
        self._visited: set[str] = set()

    def begin(self, network: nn.Module, inputs: Any) -> None:
        refuse_tracing()
        if current_thread() is not self._thread:
            raise InputError(
                f"this network is recorded or masked by thread '{self._thread.name}', and meanwhile thread "
                f"'{current_thread().name}' runs it; give each thread a copy.deepcopy of it"
            )
        self._running = True
        self._visited.clear()

    def end(self, network: nn.Module, inputs: Any, output: Any) -> None:
        self._running = False
        for node in self._nodes:
            if node.name not in self._visited:
                raise InputError(f"node '{node.name}': no pass comes by it; 'coprobe nodes' lists places that it does")

    def once(self, node: Node, hook: Hook) -> Hook:
        """`hook`, for one call per pass."""

        def visit(activation: Tensor) -> Tensor | None:
            if isinstance(activation, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(activation):
                raise InputError(
                    f"node '{node.name}' is computed inside torch.vmap or the like, where the rows of its activations "
                    "can't be seen; choose another node"
                )
            if not self._running:
                return hook(activation) if self.replaces else None
            if node.name in self._visited:
                raise InputError(f"node '{node.name}': that module is called 2 times in a pass; {_single_call(node)}")
            self._visited.add(node.name)
            return hook(activation)

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
def _at_module(module: nn.Module, at_input: bool, here: Sequence[tuple[Node, Hook]], state: _Pass) -> Iterator[None]:
    """Run the hooks on the module's output, or on its first input."""
    hooks = [state.once(node, hook) for node, hook in here]
    node = here[0][0]
    beside: list[Tensor] = []

    def of_input(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (hooked(_tensor(node, inputs[0] if inputs else None), hooks), *inputs[1:])

    def set_aside(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        beside[:] = inputs[:1]
        return (inputs[0].clone(), *inputs[1:]) if inputs else None

    def of_output(module: nn.Module, inputs: Any, output: Any) -> Tensor:
        replaced = hooked(_tensor(node, output), hooks)
        return beside.pop().copy_(replaced) if beside else replaced

    with ExitStack() as handles:
        if at_input:
            handles.callback(module.register_forward_pre_hook(of_input).remove)
        else:
            # As for functions that work in place: the caller may ignore what the module returns.
            if state.replaces and getattr(module, "inplace", False):
                handles.callback(module.register_forward_pre_hook(set_aside).remove)
            handles.callback(module.register_forward_hook(of_output).remove)
        yield


def _tensor(node: Node, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        what = type(value).__name__
        raise InputError(f"node '{node.name}': '{node.path}' passes a {what}, not a tensor; choose another node")
    return value
