"""Activation modules that call no known function: scripted ones, custom autograd functions, assignments by index."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from coprobe.nodes.axes import aside
from coprobe.nodes.functions import Call, FunctionHooks


def opaque_activations(network: nn.Module, image: Tensor) -> list[str]:
    """Paths of modules that are activation functions by what they compute, though they call none that is known.

    These have no children, are of nobody's standard classes, run once in a pass, and give, element by element, a
    function of their input that is not linear. Each is run some more times, on its own input and on others.
    """
    own = {
        module: path
        for path, module in network.named_modules()
        if path and next(module.children(), None) is None and not type(module).__module__.startswith("torch.nn.")
    }
    if not own:
        return []
    runs: Counter[nn.Module] = Counter()
    seen: set[str] = set()
    inputs: dict[nn.Module, Tensor] = {}
    bends: dict[nn.Module, bool] = {}

    def before(module: nn.Module, args: Any) -> None:
        runs[module] += 1
        if len(args) == 1 and isinstance(args[0], Tensor):
            inputs[module] = args[0].clone()

    def after(module: nn.Module, args: Any, made: Any) -> None:
        given = inputs.pop(module, None)
        if given is not None and isinstance(made, Tensor) and made.shape == given.shape and own[module] not in seen:
            bends[module] = _bends_each_element(module, given)

    def known(call: Call) -> tuple[()]:
        seen.update((call.owner, call.through))
        return ()

    functions = FunctionHooks(network, known, [path for path, _ in network.named_modules()], formulas=True)
    with ExitStack() as block:
        for module in own:
            block.callback(module.register_forward_pre_hook(before).remove)
            block.callback(module.register_forward_hook(after).remove)
        block.enter_context(aside(network))
        block.enter_context(functions.attached())
        network(image)
    return [path for module, path in own.items() if bends.get(module) and runs[module] == 1 and path not in seen]


def _bends_each_element(module: nn.Module, given: Tensor) -> bool:
    """Whether a module works element by element, and not linearly, around the input given and on another."""
    if not given.is_floating_point():
        return False
    generator = torch.Generator().manual_seed(0)
    other = (4 * torch.randn(given.shape, generator=generator)).to(given)
    first = (torch.rand(given.shape, generator=generator) < 0.5).to(given.device)

    def computed(x: Tensor) -> Tensor:
        made: Tensor = module.forward(x.clone())
        return made

    try:
        at_given, at_other = computed(given), computed(other)
        mixed, between = computed(given.where(first, other)), computed((given + other) / 2)
    except (RuntimeError, ValueError, TypeError):  # for what it wasn't made for
        return False
    near = 1e-4 * float(at_other.abs().amax()) if at_other.numel() else 0.0
    alike = torch.allclose(mixed, at_given.where(first, at_other), rtol=0, atol=near)
    return alike and not torch.allclose(between, (at_given + at_other) / 2, rtol=0, atol=10 * near)
