"""Precisions: bfloat16 held or by autocast, TF32 where there is a GPU, and what is not there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize

from coprobe.core.engine import frozen
from coprobe.errors import InputError
from coprobe.fast.classifier import FastClassifier, fast, plain
from coprobe.fast.form import Form
from coprobe.fast.precision import PRECISIONS, check_precision
from coprobe.models import Classifier
from tests.fast.networks import (
    Doubled,
    catalogued,
    classifier,
    close,
    head,
    hooked,
    images,
    pair,
    passed,
    refuse,
    sequential,
)  # fmt: skip


def test_bf16_holds_the_weights_of_known_modules() -> None:
    model, x, y = catalogued("resnet18"), images(side=32), torch.arange(4)
    with frozen(model), torch.no_grad():
        expected = model(x)
    made = fast(model, images=x, nodes=["layer1.0.conv1"], precision="bf16", say=refuse)
    kinds = {name: tensor.dtype for name, tensor in made.network.state_dict().items()}
    assert kinds["linear.weight"] == kinds["conv1.weight"] == torch.bfloat16
    assert kinds["layer1.0.bn1.running_mean"] == torch.float32
    x.requires_grad_()
    with frozen(made):
        logits = made(x)
        (gradient,) = torch.autograd.grad(cross_entropy(logits, y), x)
    close(logits.detach(), expected, 0.05)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0
    close(plain(model, "bf16")(x).detach(), expected, 0.05)
    close(passed(made, x.detach(), ["A", "E"])["A"].float(), passed(model, x.detach(), ["A"])["A"], 0.05)


class Mixing(nn.Module):
    """Has no weights of its own, and float32 in its code."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(*pair()), nn.Sequential(*pair(6), *head())

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head(torch.cat([x, torch.zeros(len(x), 2, *x.shape[2:], device=x.device)], 1))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.body = nn.Parameter(torch.ones(1, 3, 1, 1)), sequential(*pair())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.scale * x)


@pytest.mark.parametrize(
    "make",
    [
        Scaled,
        Mixing,
        lambda: sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)),
        lambda: hooked(lambda m: parametrize.register_parametrization(m, "weight", Doubled())),
    ],
)
def test_bf16_is_autocast_for_other_networks(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = classifier(make()), images()
    made = fast(model, images=x, precision="bf16", say=refuse)
    assert isinstance(made, FastClassifier)
    assert {parameter.dtype for parameter in made.parameters()} == {torch.float32}
    found, expected = passed(made, x, [])["logits"], passed(model, x, [])["logits"]
    close(found, expected, 0.05)
    assert not torch.equal(found, expected)


PRODUCTS: tuple[Any, ...] = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]


def switches() -> tuple[str, str]:
    return PRODUCTS[0].fp32_precision, PRODUCTS[1].fp32_precision


@pytest.fixture
def given_switches() -> Iterator[None]:
    before = switches()
    PRODUCTS[0].fp32_precision, PRODUCTS[1].fp32_precision = "tf32", "ieee"
    yield
    PRODUCTS[0].fp32_precision, PRODUCTS[1].fp32_precision = before


@pytest.mark.parametrize(("precision", "inside"), [("32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee"), (None, "")])
def test_products_are_computed_in_the_precision_of_the_model(
    given_switches: None, precision: str | None, inside: str
) -> None:
    model = nn.Linear(1, 1) if precision is None else Classifier(nn.Identity())
    if precision:
        model.precision = precision
    before = switches()
    for error in (None, KeyError("oh")):
        try:
            with frozen(model):
                assert switches() == ((inside, inside) if inside else before)
                with frozen(model):
                    pass
                assert switches() == ((inside, inside) if inside else before)
                if error:
                    raise error
        except KeyError:
            pass
        assert switches() == before


def test_tf32_is_float32_where_there_is_no_gpu_to_round_it() -> None:
    model, x = catalogued("resnet18"), images()
    for one in (Classifier(model.network), FastClassifier(copy.deepcopy(model.network), model, Form())):
        one.precision = "32"
        expected = one(x)
        one.precision = "tf32"
        assert torch.equal(one(x), expected)


def test_precisions_that_are_not_there() -> None:
    forms: list[Any] = [fast, plain]
    for refused in forms:
        with pytest.raises(InputError, match=r"unknown precision 'half'; choose from 32, tf32, bf16"):
            refused(catalogued("vgg11"), precision="half")
        with pytest.raises(InputError, match="--precision tf32: only CUDA GPUs have it; use 32 or bf16"):
            refused(catalogued("vgg11"), precision="tf32")
    for precision in PRECISIONS:
        check_precision(precision, "cuda")
    with pytest.raises(InputError, match="unknown node 'Z'"):
        fast(catalogued("vgg11"), nodes=["Z"])
