"""Modules that take the place of others in a copy of somebody's network: where they may, and how."""

from __future__ import annotations

from collections import Counter

from torch import nn


class Replacement(nn.Conv2d):
    """A convolution that computes what another one does, with its weights, in another way."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        like = convolution
        super().__init__(
            like.in_channels, like.out_channels, like.kernel_size, like.stride, like.padding, like.dilation,
            like.groups, like.bias is not None, like.padding_mode, device="meta",
        )  # type: ignore[arg-type]  # fmt: skip
        self.weight, self.bias = like.weight, like.bias


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
