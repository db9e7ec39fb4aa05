"""Networks of other people: switched to evaluation by their own methods, and afterwards exactly as they were."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_CONTAINERS = (dict, list, set)
_METHODS = {"train", "eval"}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, as the network's own `eval()` makes it; afterwards all is as before.

    What passes write into buffers is taken back. Where `train()` or `eval()` are the network's own, so that they may
    do more than to set flags (LoRA layers merge their weights, batch norm is kept in training mode), weights and
    attributes are put back, too: what merging and unmerging leave of a weight is not quite that weight.
    """
    modules = list(model.modules())
    modes = [(module, module.training) for module in modules]
    trains = any(mode for _, mode in modes)
    with _restored(modules, everything=trains and any(map(_switches_by_itself, modules))):
        try:
            if trains:
                model.eval()
            yield
        finally:
            for module, mode in modes:
                if module.training is not mode:
                    module.training = mode


def _switches_by_itself(module: nn.Module) -> bool:
    """Whether `train()` or `eval()` of a module are its own; what is ours only passes them on."""
    kind = type(module)
    is_own = kind.train is not nn.Module.train or kind.eval is not nn.Module.eval
    return (is_own and not kind.__module__.startswith("coprobe.")) or not _METHODS.isdisjoint(vars(module))


@contextmanager
def _restored(modules: Sequence[nn.Module], *, everything: bool = False) -> Iterator[None]:
    """Put buffers back after the block where they were written to; or everything that modules hold.

    The memory of the tensors stays the same, so that whoever else refers to it sees no other.
    """
    containers: list[Any] = []
    for module in modules:
        containers += [vars(module), *vars(module).values()] if everything else [module._buffers]
    contents = [(one, copy.copy(one)) for one in containers if isinstance(one, _CONTAINERS)]
    tensors = {id(tensor): tensor for module in modules for tensor in _tensors_of(module, everything)}.values()
    memory = [tensor.data for tensor in tensors]
    values = [tensor.clone() for tensor in memory]
    try:
        yield
    finally:
        for container, content in contents:  # the same ones, since handles of hooks refer to them
            if isinstance(container, list):
                container[:] = content
            elif not (isinstance(container, dict) and _holds(container, content)):
                container.clear()
                container.update(content)
        if everything:
            for tensor, own in zip(tensors, memory, strict=True):
                tensor.data = own
        if memory:  # not only what says that it was written to: running statistics don't
            torch._foreach_copy_(memory, values)


def _tensors_of(module: nn.Module, everything: bool) -> list[Tensor]:
    """Those that can be written to in place."""
    held = (*module._buffers.values(), *(module._parameters.values() if everything else ()))
    return [one for one in held if one is not None and not (one.is_inference() or _is_expanded(one))]


def _is_expanded(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and any(
        step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)
    )


def _holds(container: dict[Any, Any], content: Any) -> bool:
    """Whether a dictionary still has the keys of another one, with the same things behind them."""
    return [*container] == [*content] and all(container[key] is content[key] for key in content)
