"""A real network on real images: coprobe's attacks against other implementations of the same ones."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coprobe.attacks import parse
from coprobe.attacks.base import PURPOSE
from coprobe.checkpoint import load as load_checkpoint
from coprobe.core.randomness import key_of
from coprobe.data import load as load_data

pytestmark = pytest.mark.real


@lru_cache
def network(path: Path) -> nn.Module:
    return load_checkpoint(path).model.eval()


@lru_cache
def images(spec: str, count: int) -> tuple[Tensor, Tensor]:
    """The first test images, whatever their class."""
    data = load_data(spec, "test", limit=count)
    return data.images / 255, data.labels


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


@pytest.mark.slow
def test_pgd_is_that_of_torchattacks(cifar10: str, example_checkpoint: Path) -> None:
    """10 steps from zero on 16 images; a sign that flips on a gradient near zero moves a pixel by two steps."""
    torchattacks = pytest.importorskip("torchattacks")
    model = network(example_checkpoint)
    x, y = images(cifar10, 16)
    attack = parse("pgd:10:start=zero:rule=always:step-size=0.25", 1 / 255)
    x_adv = attack(model, x, y)
    expected = torchattacks.PGD(model, eps=1 / 255, alpha=0.25 / 255, steps=10, random_start=False)(x, y)
    same = ((x_adv - expected).abs() <= 1e-6).float().mean()
    assert same >= 0.999
    assert accuracy(model, x_adv, y) == accuracy(model, expected, y)
    assert accuracy(model, x_adv, y) < accuracy(model, x, y) - 0.1, "the attack has to do something"


@pytest.mark.slow
def test_apgd_ce_is_that_of_autoattack(cifar10: str, example_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 20 of its 100 steps."""
    import pyautoattack

    perturb = pyautoattack.autoattack.APGDAttack.perturb

    def briefly(self: Any, *arguments: Any) -> Any:
        self.n_iter = 20
        return perturb(self, *arguments)

    monkeypatch.setattr(pyautoattack.autoattack.APGDAttack, "perturb", briefly)
    model = network(example_checkpoint)
    x, y = images(cifar10, 64)
    x, y = x[:4], y[:4]
    x_adv = parse("apgd-ce", 1 / 255)(model, x, y, seed=5)
    adversary = pyautoattack.AutoAttack(
        model, eps=1 / 255, seed=key_of(5, PURPOSE, 0), version="custom", attacks=["apgd-ce"]
    )
    adversary.apgd.n_restarts = 1
    with torch.random.fork_rng([]):
        expected, _ = adversary.run_standard_evaluation(x, y, batch_size=len(x))
    assert ((x_adv - expected).abs() <= 1e-6).float().mean() >= 0.999
    assert accuracy(model, x_adv, y) == accuracy(model, expected, y)
