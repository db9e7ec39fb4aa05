"""Convolutions whose weights are kept in oneDNN's own order, for the way there and the way back.

torch keeps weights in its own order, and oneDNN takes them into another one at every call, forward and backward, which
for small batches, small images or bfloat16 on matrix units is a good part of the time. Here it is done once, by the
operators that torch.compile freezes weights with. The gradient by the input of a convolution of stride 1 is again such
a convolution, with the weights turned round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from coprobe.fast.replacing import Replacement

#: A convolution's channels are multiples of it, so that they fill vectors.
_MULTIPLE = 16


class Packed(Replacement):
    """The same convolution, for weights that don't change any more; it can be differentiated by its input, once.

    Args:
        convolution: one that it `suits`.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__(convolution)
        self._packed: dict[torch.Size, tuple[Tensor, Tensor]] = {}  # by height and width, which the order depends on

    @staticmethod
    def suits(convolution: nn.Module) -> TypeGuard[nn.Conv2d]:
        """Whether it can take the place of this one, and may be faster: on a CPU, where nothing is strided."""
        return (
            type(convolution) is nn.Conv2d
            and torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
            and convolution.weight.device.type == "cpu"
            and convolution.weight.dtype == torch.float32
            and convolution.stride == convolution.dilation == (1, 1)
            and isinstance(convolution.padding, tuple)
            and all(pad < size for pad, size in zip(convolution.padding, convolution.kernel_size, strict=True))
            and convolution.padding_mode == "zeros"
            and convolution.groups == 1
            and convolution.in_channels % _MULTIPLE == convolution.out_channels % _MULTIPLE == 0
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps batch×in×height×width to batch×out×height×width."""
        if x.dim() != 4 or not len(x) or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        padding = [int(pad) for pad in self.padding]
        padding_back = [size - 1 - pad for size, pad in zip(self.kernel_size, padding, strict=True)]
        if x.shape[2:] not in self._packed:
            weight = self.weight.detach()
            turned = weight.flip(2, 3).transpose(0, 1).contiguous()
            outputs = [
                size + 2 * pad - kernel + 1
                for size, pad, kernel in zip(x.shape[2:], padding, self.kernel_size, strict=True)
            ]
            self._packed[x.shape[2:]] = (
                _packed(weight, padding, x.shape),
                _packed(turned, padding_back, (len(x), self.out_channels, *outputs)),
            )
        there, back = self._packed[x.shape[2:]]
        convolved: Tensor = _Function.apply(x, (there, self.bias, padding), (back, None, padding_back))
        return convolved

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Packed:
        self._packed = {}
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": {}}  # which can't be copied


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, there: tuple[Any, ...], back: tuple[Any, ...]) -> Tensor:
        ctx.back = back
        return _convolved(x, *there)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _convolved(gradient, *ctx.back), None, None


def _packed(weight: Tensor, padding: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Weights in the order that oneDNN wants for inputs of this shape; from any other it is slow, at every call."""
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(weight, padding, [1, 1], [1, 1], 1, list(shape))
    return packed


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int]) -> Tensor:
    convolved: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, padding, [1, 1], [1, 1], 1, "none", [], ""
    )
    return convolved
