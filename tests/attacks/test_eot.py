"""The attack on the expectation over noise: against a literal loop, and where noise turns the gradient around."""

from __future__ import annotations

import itertools
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from coprobe.attacks import StepAttack, parse
from coprobe.attacks.base import PURPOSE
from coprobe.core.randomness import ImageRandomness
from coprobe.errors import InputError
from tests.attacks.small import trained

EPSILON = 0.1


def uniform(like: Tensor, *place: int) -> Tensor:
    """The random numbers of images 0, 1, … under seed 4."""
    return ImageRandomness(4, PURPOSE, torch.arange(len(like))).uniform(like.shape[1:], *place).to(like.dtype)


@pytest.mark.parametrize("start", ["uniform", "zero"])
def test_is_the_literal_loop(start: str) -> None:
    model, x, y = trained()
    model, x, y = deepcopy(model).double(), x[:6].double(), y[:6]
    attack = parse(f"pgd-eot:3:samples=4:noise=20:step-size=10:start={start}", EPSILON)
    x_adv = attack(model, x, y, seed=4)
    expected = x.clone()
    if start == "uniform":
        expected = (x + (2 * uniform(x, 0) - 1) * EPSILON).clamp(0, 1)
    for step in range(3):
        noises = [(2 * uniform(x, 0, step, sample) - 1) * 20 / 255 for sample in range(4)]
        stepped = expected.clone()
        for place in range(6):  # misclassified images move as well
            point = expected[place : place + 1].clone().requires_grad_()
            losses = [cross_entropy(model(point + noise[place]), y[place : place + 1]) for noise in noises]
            (gradient,) = torch.autograd.grad(torch.stack(losses).mean(), point)
            moved = point.detach() + 10 / 255 * gradient.sign()
            stepped[place] = moved.clamp(x[place] - EPSILON, x[place] + EPSILON).clamp(0, 1)
        expected = stepped
    assert torch.allclose(x_adv, expected, rtol=0, atol=1e-12)
    assert (model(expected).argmax(1) != y).any(), "some image would have stopped under the other rule"


class Dimple(nn.Module):
    """Two classes; the margin of class 0 grows with the mean pixel, but for a narrow slope against it at 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        u = x.mean((1, 2, 3)) - 0.5
        margin = 10 * u - 0.4 * torch.sin(200 * u).clamp(-1, 1)
        return torch.stack([margin, torch.zeros_like(margin)], 1)


def test_noise_shows_the_way_that_the_gradient_hides() -> None:
    x, y = torch.full((2, 1, 1, 1), 0.5), torch.zeros(2, dtype=torch.int64)
    plain = parse("pgd:1:start=zero:rule=always", 16 / 255)(Dimple(), x, y)
    eot = parse("pgd-eot:1:start=zero:samples=400:noise=64", 16 / 255)(Dimple(), x, y)
    # The slope at 0.5 is 10 − 80 < 0, its mean over ±64/255 close to 10.
    assert (plain > x).all() and (eot < x).all()


def test_steps_end_where_the_call_ends_and_every_image_takes_them_all() -> None:
    model, x, y = trained()
    attack = parse("pgd-eot:4:samples=2", EPSILON)
    assert isinstance(attack, StepAttack)
    trail = list(attack.steps(model, x, y, seed=1))
    assert len(trail) == 5
    assert torch.equal(trail[-1], attack(model, x, y, seed=1))
    assert all((now != before).flatten(1).any(1).all() for before, now in itertools.pairwise(trail))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pgd-eot:rule=until-misclassified", "rule 'until-misclassified' means nothing under noise"),
        ("pgd-eot:rule=never", "rule 'never' is not one of"),
        ("pgd-eot:samples=0", "samples 0: must be at least 1"),
        ("pgd-eot:samples=2.5", "samples takes a whole number"),
        ("pgd-eot:noise=0", "noise 0/255: must be above 0 and at most 255/255"),
        ("pgd-eot:noise=256", "noise 256/255: must be above 0"),
        ("pgd-eot:noise=nan", "noise nan/255: must be above 0"),
        ("pgd-eot:0", "iterations 0: must be at least 1"),
    ],
)
def test_wrong_options(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(spec, EPSILON)


def test_names() -> None:
    assert parse("pgd-eot", EPSILON).spec == "pgd-eot:10" and parse("pgd-eot", EPSILON).label == "EOT-PGD-10"
    spec = "pgd-eot:50:step-size=4:samples=20:noise=8"
    assert parse(spec, EPSILON).spec == spec
    assert parse(spec, EPSILON).label == "EOT-PGD-50 (step-size=4, samples=20, noise=8)"
