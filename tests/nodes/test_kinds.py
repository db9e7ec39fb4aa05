"""Activation functions of every kind make a node, and the node is what they give, not a part of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coprobe.nodes import guess_table, masked, places, record
from tests.nodes.networks import images


class MemoryEfficientSwish(torch.autograd.Function):
    """As in many EfficientNets."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradient * s * (1 + x * (1 - s))


class ByIndex(torch.autograd.Function):
    """ReLU without any function that has a name."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.clone()
        y[x < 0] = 0
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * (ctx.saved_tensors[0] > 0)


def gelu_by_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3)))


#: Ways to write an activation function, the function itself, and what its node is called.
WRITTEN: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], str]] = {
    "h-swish": (lambda x: x * F.relu6(x + 3) / 6, F.hardswish, "formula2"),
    "h-swish, gate first": (lambda x: F.relu6(x + 3, inplace=True) / 6 * x, F.hardswish, "formula1"),
    "h-swish, clamped": (lambda x: x * (x + 3).clamp(0, 6) / 6, F.hardswish, "formula2"),
    "h-swish, hardsigmoid": (lambda x: x * F.hardsigmoid(x), F.hardswish, "formula1"),
    "mish": (lambda x: x * torch.tanh(F.softplus(x)), F.mish, "formula1"),
    "swish": (lambda x: x * torch.sigmoid(x), F.silu, "formula1"),
    "swish in place": (lambda x: x.mul_(x.sigmoid()), F.silu, "formula1"),
    "swish by exp": (lambda x: x / (1 + torch.exp(-x)), F.silu, "formula1"),
    "gelu": (gelu_by_tanh, lambda x: F.gelu(x, approximate="tanh"), "formula1"),
    "gelu by erf": (lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)), F.gelu, "formula1"),
    "where": (lambda x: torch.where(x > 0, x, torch.zeros_like(x)), F.relu, "formula1"),
    "where, a number": (lambda x: torch.where(x > 0, x, 0.1 * x), lambda x: F.leaky_relu(x, 0.1), "formula1"),
    "masked fill": (lambda x: x.masked_fill(x < 0, 0), F.relu, "formula1"),
    "times a mask": (lambda x: x * (x > 0).to(x.dtype), F.relu, "formula1"),
    "prelu": (lambda x: F.relu(x) - 0.25 * F.relu(-x), lambda x: F.leaky_relu(x, 0.25), "formula1"),
    "selu": (
        lambda x: 1.0507009873554805 * torch.where(x > 0, x, 1.6732632423543772 * (torch.exp(x) - 1)),
        F.selu,
        "formula2",
    ),
    "maximum": (lambda x: torch.maximum(x, torch.zeros(())), F.relu, "maximum1"),
    "max": (lambda x: torch.max(x, 0.2 * x), lambda x: F.leaky_relu(x, 0.2), "maximum1"),
    "threshold": (lambda x: F.threshold(x, 0.1, 0.0), lambda x: x.where(x > 0.1, 0), "threshold1"),
    "tanh": (torch.tanh, F.tanh, "tanh1"),
    "sigmoid": (lambda x: x.sigmoid(), F.sigmoid, "sigmoid1"),
    "hardtanh": (F.hardtanh, lambda x: x.clamp(-1, 1), "hardtanh1"),
    "softsign": (F.softsign, lambda x: x / (1 + x.abs()), "softsign1"),
    "log sigmoid": (F.logsigmoid, lambda x: -F.softplus(-x), "logsigmoid1"),
    "an autograd function": (MemoryEfficientSwish.apply, F.silu, "formula1"),
}


class Block(nn.Module):
    """A convolution, a function in the middle of what the block does, and another convolution."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.function = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 3, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(4 * self.first(x) - 1))


@pytest.mark.parametrize("way", WRITTEN)
def test_a_written_function_is_a_node_and_its_parts_are_none(way: str) -> None:
    written, function, name = WRITTEN[way]
    model, x = nn.Sequential(Block(written)), images()
    assert [(place.path, place.axis, place.rows) for place in places(model, (2, 4, 5))] == [(f"0#{name}", 1, 1)]
    assert guess_table(model, (2, 4, 5)) == {"A": f"0#{name}"}
    expected = function(4 * model[0].first(x) - 1)
    with torch.no_grad(), record(model, [f"0#{name}"]) as seen:
        logits = model(x)
    torch.testing.assert_close(seen[f"0#{name}"], expected)
    assert torch.equal(logits, model(x))
    expected = expected.detach().clone()
    expected[:, 2] = 0
    with torch.no_grad(), masked(model, {f"0#{name}": [2]}):
        torch.testing.assert_close(model(x), model[0].second(expected))


@pytest.mark.parametrize(
    "way",
    [
        lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),  # squeeze and excitation
        lambda x: (x - x.mean(1, keepdim=True)) * torch.rsqrt(x.var(1, keepdim=True) + 1e-5),
        lambda x: (x - 1) * (x + 1),
        lambda x: x + 0.1 * x,
        lambda x: x * x,
        lambda x: x * x.flip(3),
    ],
)
def test_what_is_no_formula(way: Callable[[Tensor], Tensor]) -> None:
    found = places(nn.Sequential(Block(way)), (2, 4, 5))
    assert {place.function for place in found} <= {"sigmoid"}


def test_a_relu_before_a_written_swish_is_no_part_of_it() -> None:
    def both(x: Tensor) -> Tensor:
        x = F.relu(x)
        return x * torch.sigmoid(x)

    assert [place.path for place in places(nn.Sequential(Block(both)), (2, 4, 5))] == ["0#relu1", "0#formula1"]


def test_gates_are_places_but_letters_only_where_there_is_nothing_else() -> None:
    class Gated(nn.Module):
        def __init__(self, function: nn.Module) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.gate, self.function = nn.Conv2d(2, 6, 1), nn.Conv2d(2, 6, 1), function
            self.sigmoid = nn.Sigmoid()

        def forward(self, x: Tensor) -> Tensor:
            return self.function(self.conv(x)) * self.sigmoid(self.gate(x))

    model = Gated(nn.ReLU())
    assert [place.path for place in places(model, (2, 4, 5))] == ["function", "sigmoid"]
    assert guess_table(model, (2, 4, 5)) == {"A": "function"}
    assert list(guess_table(Gated(nn.Tanh()), (2, 4, 5)).values()) == ["function", "sigmoid"]


class Own(nn.Module):
    """A module that is an activation function, though it calls none."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@torch.jit.script
def scripted_swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


@pytest.mark.parametrize(
    ("function", "same"),
    [
        (ByIndex.apply, F.relu),
        (scripted_swish, F.silu),
        (torch.sin, torch.sin),
        (lambda x: torch.log(1 + torch.exp(x)), F.softplus),
    ],
)
def test_a_module_that_bends_every_element_is_an_activation_module(
    function: Callable[[Tensor], Tensor], same: Callable[[Tensor], Tensor]
) -> None:
    model, x = nn.Sequential(nn.Conv2d(2, 6, 1), Own(function), nn.Conv2d(6, 3, 1)), images()
    (place,) = places(model, (2, 4, 5))
    assert (place.path, place.function, place.rows) == ("1", "own", 1)
    with torch.no_grad(), record(model, ["0", "2:in"]) as seen:
        model(x)
    torch.testing.assert_close(seen["2:in"], same(seen["0"]))


@pytest.mark.parametrize(
    "function", [lambda x: x, lambda x: 2 * x + 1, lambda x: x.softmax(1), lambda x: x.cumsum(2), lambda x: x.mean(1)]
)
def test_other_modules_are_none(function: Callable[[Tensor], Tensor]) -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 1), Own(function))
    assert places(model, (2, 4, 5)) == []


def test_a_clamp_of_weights_is_no_place() -> None:
    class Positive(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, F.relu(self.weight))

    model = nn.Sequential(Positive(2, 6, 1), nn.ReLU())
    assert [place.path for place in places(model, (2, 4, 5))] == ["1"]
