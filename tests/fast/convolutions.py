"""What a convolution that is computed in another way is compared with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def assert_convolves(made: nn.Module, plain: nn.Conv2d, x: Tensor, tolerance: float) -> None:
    """Outputs and gradients are those of `plain` in float64, but for this part of the largest."""
    x.requires_grad_()
    exact_x = x.detach().double().requires_grad_()
    bias = None if plain.bias is None else plain.bias.double()
    exact = conv2d(exact_x, plain.weight.double(), bias, padding=plain.padding)
    found = made(x)
    gradient = images(*exact.shape[::-1]).permute(3, 2, 1, 0)  # in no layout that anybody would expect
    (expected,) = torch.autograd.grad(exact, exact_x, gradient.double())
    (back,) = torch.autograd.grad(found, x, gradient)
    assert found.shape == exact.shape and found.dtype == torch.float32
    assert torch.allclose(found.double(), exact, rtol=0, atol=tolerance * exact.detach().abs().amax().item())
    assert torch.allclose(back.double(), expected, rtol=0, atol=tolerance * expected.abs().amax().item())
