"""Convolutions with fewer multiplications are the same convolutions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from coprobe.fast.winograd import Winograd
from tests.fast.convolutions import assert_convolves, images


def convolution(inside: int = 4, outside: int = 6, **settings: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(inside, outside, 3, padding=1, **settings).requires_grad_(False)


#: The last is so many images that they are worked on in three parts.
SHAPES = [(1, 8, 8), (7, 8, 8), (5, 4, 12), (2, 12, 4), (20, 4, 4), (3, 7, 8), (3, 8, 6), (2500, 8, 8)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_outputs_and_gradients(shape: tuple[int, int, int], bias: bool, layout: torch.memory_format) -> None:
    count, height, width = shape
    plain = convolution(bias=bias)
    x = images(count, 4, height, width).contiguous(memory_format=layout)
    assert_convolves(Winograd(plain), plain, x, 2e-5)


@pytest.mark.parametrize("shape", [(0, 4, 8, 8), (4, 8, 8)])
def test_no_images_and_one_without_a_batch(shape: tuple[int, ...]) -> None:
    plain, x = convolution(), images(*shape)
    assert torch.equal(Winograd(plain)(x), plain(x))


def test_small_numbers_without_rounding() -> None:
    """Whole numbers over 24² come out exactly, so that every factor is the one it should be."""
    plain = convolution(bias=False)
    plain.weight.copy_(torch.randint(-3, 4, plain.weight.shape) * 576.0)
    x = torch.randint(-3, 4, (3, 4, 8, 8)).float()
    assert torch.equal(Winograd(plain)(x), plain(x))


def test_no_other_image_of_the_batch_changes_a_digit() -> None:
    made = Winograd(convolution(128, 128))
    x = images(150, 128, 8, 8).contiguous(memory_format=torch.channels_last)
    whole = made(x)
    for first, last in [(0, 16), (3, 20), (40, 104), (1, 130), (134, 150)]:
        assert torch.equal(made(x[first:last]), whole[first:last])


def test_nothing_that_is_given_is_written_to() -> None:
    plain = convolution()
    weights, x = plain.weight.clone(), images(3, 4, 8, 8)
    given = x.clone()
    Winograd(plain)(x)
    assert torch.equal(plain.weight, weights) and torch.equal(x, given)


def test_it_can_be_differentiated_once() -> None:
    x = images(2, 4, 8, 8).requires_grad_()
    (back,) = torch.autograd.grad(Winograd(convolution())(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        back.sum().backward()


class Own(nn.Conv2d):
    """Whose forward could be anything."""


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="its products are MKL's")
def test_which_convolutions_it_suits() -> None:
    assert Winograd.suits(nn.Conv2d(64, 64, 3, padding=1), 64)
    assert Winograd.suits(nn.Conv2d(64, 96, 3, padding="same", bias=False), 64)
    others = [
        nn.Conv2d(64, 64, 5, padding=2),
        nn.Conv2d(64, 64, (3, 1), padding=(1, 0)),
        nn.Conv2d(64, 64, 3, padding=1, stride=2),
        nn.Conv2d(64, 64, 3, padding=1, dilation=2),
        nn.Conv2d(64, 64, 3),
        nn.Conv2d(64, 64, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(64, 64, 3, padding=1, groups=2),
        nn.Conv2d(64, 64, 3, padding=1, dtype=torch.float64),
        nn.Conv2d(48, 64, 3, padding=1),
        nn.Conv2d(64, 65, 3, padding=1),
        nn.Conv2d(64, 64, 3, padding=1, device="meta"),
        Own(64, 64, 3, padding=1),
        nn.Identity(),
    ]
    assert [module for module in others if Winograd.suits(module, 64)] == []
