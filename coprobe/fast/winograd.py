"""3×3 convolutions with a quarter of the multiplications: Winograd's minimal filtering, F(4×4, 3×3).

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2016). A tile of 6×6 inputs and the weights are
taken to 36 points each, where the convolution is a product of matrices at every point, and the products are taken back
to a tile of 4×4 outputs. In float32 the largest error is about ten times that of the direct convolution, some 1e-5 of
the largest output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from coprobe.fast.replacing import Replacement

#: Height and width of a tile of outputs, and of the inputs that they depend on.
OUT, IN = 4, 6

#: Channels on either side are multiples of it.
_MULTIPLE = 16

#: Of what is worked on at once, numbers at all points, which the caches shall hold, and tiles, enough for a product.
_NUMBERS, _TILES = 2**20, 128

#: Numbers between those at one point and those at the next.
_GAP = 16

#: From weights of a row to their values at the points 0, 1, −1, 2, −2 and ∞, each scaled.
_AT_POINTS = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)


class Winograd(Replacement):
    """The same convolution, for weights that don't change any more; it can be differentiated by its input, once.

    The weights at the points take four times the memory of the weights, once for the way there and once for the way
    back. Heights and widths that are no multiples of 4, and no images or a single one without a batch, are left to
    torch.

    Args:
        convolution: one that it `suits`.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__(convolution)
        self.register_buffer("_there", _at_points(self.weight), persistent=False)
        self.register_buffer("_back", _at_points(self.weight.flip(2, 3).transpose(0, 1)), persistent=False)

    @staticmethod
    def suits(convolution: nn.Module, least: int = _MULTIPLE) -> TypeGuard[nn.Conv2d]:
        """Whether it can take the place of this one, and may be faster: on a CPU of x86's kind, by MKL's products.

        Args:
            convolution: any module.
            least: channels that must come in and go out.
        """
        return (
            type(convolution) is nn.Conv2d
            and torch.backends.mkl.is_available()
            and convolution.weight.device.type == "cpu"
            and convolution.weight.dtype == torch.float32
            and convolution.kernel_size == (3, 3)
            and convolution.stride == convolution.dilation == (1, 1)
            and convolution.padding in ((1, 1), "same")
            and convolution.padding_mode == "zeros"
            and convolution.groups == 1
            and all(
                channels >= least and channels % _MULTIPLE == 0
                for channels in (convolution.in_channels, convolution.out_channels)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps batch×in×height×width to batch×out×height×width."""
        if x.dim() != 4 or not len(x) or x.shape[2] % OUT or x.shape[3] % OUT:
            return super().forward(x)
        convolved: Tensor = _Function.apply(x, self._there, self._back, self.bias)
        return convolved


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Tensor, back: Tensor, bias: Tensor | None) -> Tensor:
        ctx.back = back
        return _convolved(x, there, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _convolved(gradient, ctx.back, None), None, None, None


@torch.no_grad()
def _at_points(weight: Tensor) -> Tensor:
    """Weights out×in×3×3 at the points, 36×in×out."""
    points = torch.tensor(_AT_POINTS, dtype=torch.float64, device=weight.device)
    at = torch.einsum("wv,hu,oiuv->whio", points, points, weight.double())
    return at.flatten(0, 1).to(weight.dtype).contiguous()


def _convolved(x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """Inputs batch×in×height×width, zero around them, convolved with weights 36×in×out at the points."""
    count, inside, height, width = x.shape
    outside = weights.shape[2]
    down, across = height // OUT, width // OUT
    most = max(_TILES, _NUMBERS // (IN * IN * max(inside, outside)))
    parts = min(-(-count * down * across // most), count)
    made = torch.empty(count, outside, height, width, dtype=x.dtype, memory_format=torch.channels_last)
    largest = IN * IN * (-(-count // parts) * down * across * max(inside, outside) + _GAP)
    first, second = x.new_empty(largest), x.new_empty(largest)  # in turn what is read and what is written
    for part, out in zip(x.tensor_split(parts), made.tensor_split(parts), strict=True):
        n = len(part)
        padded = pad(part.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        image, row, column, channel = padded.stride()
        inputs = padded.as_strided((IN, n, down, width + 2, inside), (row, image, OUT * row, column, channel))
        rows = _to_points(inputs, _room(first, IN, inputs.shape[1:]))
        point, image, row, column, channel = rows.stride()
        shape, strides = (IN, IN, n, down, across, inside), (column, point, image, row, OUT * column, channel)
        both = _to_points(rows.as_strided(shape, strides), _room(second, IN * IN, shape[2:]).unflatten(0, (IN, IN)))
        tiles = n * down * across
        products = first[: IN * IN * tiles * outside].view(IN * IN, tiles, outside)  # torch wants these contiguous
        torch.bmm(both.flatten(2, 4).flatten(0, 1), weights, out=products)
        if bias is not None:
            products[IN + 1] += bias  # what is at the points 1 and 1 gets into every output once
        products = products.view(IN, IN, n, down, across, outside)
        columns = _from_points(products, _room(second, OUT * IN, products.shape[2:]).unflatten(0, (OUT, IN)))
        into = out.permute(0, 2, 3, 1).view(n, down, OUT, across, OUT, outside).permute(2, 4, 0, 1, 3, 5)
        _from_points(columns.transpose(0, 1), into)
    return made


def _room(memory: Tensor, points: int, shape: Sequence[int]) -> Tensor:
    """Memory for numbers at so many points, which do not lie a power of two apart: caches take that badly."""
    count = math.prod(shape)
    return memory.as_strided((points, count), (count + _GAP, 1)).unflatten(1, shape)


def _to_points(inputs: Tensor, at: Tensor) -> Tensor:
    """Six inputs, one after the other along the first axis, at the six points.

    Here and in `_from_points` every factor is a power of two, so that no digit depends on which products are fused.
    """
    d0, d1, d2, d3, d4, d5 = inputs.unbind()
    p0, p1, p2, p3, p4, p5 = at.unbind()
    torch.sub(d4, d2, alpha=4, out=p0)
    torch.sub(d3, d1, alpha=4, out=p5)
    torch.add(p0, p5, out=p1)
    torch.sub(p0, p5, out=p2)
    even, odd = d4 - d2, d3 - d1
    torch.add(even, odd, alpha=2, out=p3)
    torch.sub(even, odd, alpha=2, out=p4)
    torch.sub(d0, d2, out=p0)
    torch.add(even, p0, alpha=4, out=p0)
    torch.sub(d5, d3, out=p5)
    p5.sub_(odd, alpha=4)
    return at


def _from_points(products: Tensor, into: Tensor) -> Tensor:
    """Four outputs from products at the six points."""
    m0, m1, m2, m3, m4, m5 = products.unbind()
    y0, y1, y2, y3 = into.unbind()
    even, odd, far = m1 + m2, m1 - m2, m3 + m4
    torch.add(even, far, alpha=4, out=y2)
    torch.add(even, far, out=y0)
    y0 += m0
    torch.sub(m3, m4, out=far)
    torch.add(odd, far, alpha=2, out=y1)
    torch.add(odd, far, alpha=8, out=y3)
    y3 += m5
    return into
