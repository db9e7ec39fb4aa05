"""Convolutions with packed weights are the same convolutions."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from coprobe.fast.packed import Packed
from tests.fast.convolutions import assert_convolves, images

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="weights are packed by oneDNN")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("kernel", "padding", "shape", "bias"),
    [(3, 1, (5, 8, 8), True), (3, 0, (2, 7, 5), False), (1, 0, (20, 4, 6), True), ((5, 3), (4, 2), (3, 6, 7), False)],
)
def test_outputs_and_gradients(
    kernel: int | tuple[int, int],
    padding: int | tuple[int, int],
    shape: tuple[int, int, int],
    bias: bool,
    layout: torch.memory_format,
) -> None:
    torch.manual_seed(0)
    count, height, width = shape
    plain = nn.Conv2d(16, 32, kernel, padding=padding, bias=bias).requires_grad_(False)
    assert Packed.suits(plain)
    x = images(count, 16, height, width).contiguous(memory_format=layout)
    assert_convolves(Packed(plain), plain, x, 1e-5)


def made() -> tuple[nn.Conv2d, Packed]:
    torch.manual_seed(0)
    plain = nn.Conv2d(16, 16, 3, padding=1).requires_grad_(False)
    return plain, Packed(plain)


@pytest.mark.parametrize("shape", [(0, 16, 8, 8), (16, 8, 8)])
def test_no_images_and_one_without_a_batch(shape: tuple[int, ...]) -> None:
    plain, packed = made()
    assert torch.equal(packed(images(*shape)), plain(images(*shape)))


def test_no_other_image_of_the_batch_changes_a_digit() -> None:
    _, packed = made()
    x = images(70, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    whole = packed(x)
    for first, last in [(0, 16), (3, 20), (6, 70)]:
        assert torch.equal(packed(x[first:last]), whole[first:last])


def test_copies_and_changed_weights() -> None:
    _, packed = made()
    x = images(4, 16, 8, 8)
    before = packed(x)
    assert torch.equal(copy.deepcopy(packed)(x), before)
    doubled = packed._apply(lambda tensor: 2 * tensor)(x)
    assert torch.allclose(doubled, 2 * before, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):  # which torch's own convolution knows about
        assert packed(x).dtype == nn.Conv2d(16, 16, 3)(x).dtype


def test_it_can_be_differentiated_once() -> None:
    x = images(2, 16, 8, 8).requires_grad_()
    (back,) = torch.autograd.grad(made()[1](x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        back.sum().backward()


class Own(nn.Conv2d):
    """Whose forward could be anything."""


def test_which_convolutions_it_suits() -> None:
    others = [
        nn.Conv2d(16, 16, 3, stride=2),
        nn.Conv2d(16, 16, 3, dilation=2),
        nn.Conv2d(16, 16, 1, padding=1),
        nn.Conv2d(16, 16, 3, padding="same"),
        nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(16, 16, 3, groups=2),
        nn.Conv2d(16, 16, 3, dtype=torch.float64),
        nn.Conv2d(3, 16, 3),
        nn.Conv2d(16, 24, 3),
        nn.Conv2d(16, 16, 3, device="meta"),
        Own(16, 16, 3),
        nn.Identity(),
    ]
    assert [module for module in others if Packed.suits(module)] == []
