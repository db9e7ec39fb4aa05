"""The memory layout of images and activations: channels-last, but where a network or a kernel can't bear it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def layout_of(network: nn.Module) -> torch.memory_format:
    """Channels-last, but for very narrow networks, whose layout stays torch's default.

    On processors with AVX2 and no AVX-512, oneDNN's backward pass to the input of a strided 1×1 convolution with fewer
    than 8 input channels writes beyond its memory when the layout is channels-last (torch 2.14.1: the process aborts
    or hangs). ResNets of width below 8 have such convolutions in their shortcuts.
    """
    for module in network.modules():
        if not isinstance(module, nn.Conv2d) or module.in_channels // module.groups >= 8:
            continue
        if max(module.kernel_size) == 1 and max(module.stride) > 1:
            return torch.contiguous_format
    return torch.channels_last


class CopyingViews(TorchFunctionMode):
    """Inside the block, `x.view(…)` copies where `x` can't be seen so, as `x.reshape(…)` does.

    Networks that end in `x.view(x.size(0), -1)` count on torch's default layout.
    """

    def __torch_function__(self, called: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute as asked for."""
        kwargs = kwargs or {}
        if called is Tensor.view_as:
            return args[0].reshape(args[1].shape)
        if called is not Tensor.view or any(isinstance(value, torch.dtype) for value in (*args, *kwargs.values())):
            return called(*args, **kwargs)
        return args[0].reshape(*args[1:], **{name.replace("size", "shape"): value for name, value in kwargs.items()})
