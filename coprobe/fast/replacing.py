"""Modules that take the place of others in a copy of somebody's network: where they may, and how."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn


class Replacement(nn.Conv2d):
    """A convolution that computes what another one does, with its weights, in another way.

    Attributes:
        channel_axis: of the output, for `nodes`, which can't follow memory that is written part by part.
    """

    channel_axis = 1

    def __init__(self, convolution: nn.Conv2d) -> None:
        names = (
            "in_channels",
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
            "padding_mode",
        )
        settings: dict[str, Any] = {name: getattr(convolution, name) for name in names}
        super().__init__(**settings, bias=convolution.bias is not None, device="meta")
        self.weight, self.bias = convolution.weight, convolution.bias


def replaceable(network: nn.Module) -> set[str]:
    """Paths of the modules that nothing else has a hand in: no hook, no patched forward, no second place in the network
    for the module or for a weight of it.
    """
    places = list(network.named_modules(remove_duplicate=False))
    modules = Counter(module for _, module in places)
    weights = Counter(weight for module in network.modules() for weight in module._parameters.values())
    return {
        path
        for path, module in places
        if modules[module] == 1
        and not _is_tampered_with(module)
        and all(weight is None or weights[weight] == 1 for weight in module._parameters.values())
    }


def replace(network: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of the one at the path."""
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)


def _is_tampered_with(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)
