"""The members of AutoAttack against the package that implements them, called directly."""

from __future__ import annotations

import pyautoattack
import pytest
import torch
from torch import Tensor, nn

from coprobe.attacks import parse
from tests.attacks.small import trained

SEED = 11
EPSILON = 0.04  # some images break and some do not


MEMBERS = {"aa": ["apgd-ce", "apgd-t", "fab-t", "square"], "aa-fast": ["apgd-ce", "apgd-t"]}


def direct(model: nn.Module, x: Tensor, y: Tensor, members: list[str]) -> Tensor:
    """AutoAttack as its authors show it: the standard version, or its members one by one."""
    state = torch.get_rng_state()
    if len(members) == 4:
        adversary = pyautoattack.AutoAttack(model, norm="Linf", eps=EPSILON, seed=SEED, version="standard")
    else:
        adversary = pyautoattack.AutoAttack(
            model, norm="Linf", eps=EPSILON, seed=SEED, version="custom", attacks=list(members)
        )
        adversary.apgd.n_restarts = 1
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = 3  # of four classes
    x_adv, _ = adversary.run_standard_evaluation(x, y, batch_size=len(x))
    torch.set_rng_state(state)
    return x_adv


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "fab-t", "square", "aa", "aa-fast"])
def test_is_the_package_called_directly(name: str) -> None:
    model, x, y = trained()
    x, y = x[:12], y[:12]
    expected = direct(model, x, y, MEMBERS.get(name, [name]))
    x_adv = parse(name, EPSILON)(model, x, y, generator=torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        broken = (model(x_adv).argmax(1) != y) & (model(x).argmax(1) == y)
    assert 0 < broken.sum() < len(x)
    assert (x_adv - expected).abs().max() <= 1e-6
    assert torch.equal((x_adv != x).flatten(1).any(1), broken), "the others come back as they are"


def test_aa_is_at_least_as_strong_as_its_members() -> None:
    model, x, y = trained()
    x, y = x[:12], y[:12]

    def accuracy(name: str) -> float:
        with torch.no_grad():
            return float((model(parse(name, EPSILON)(model, x, y)).argmax(1) == y).float().mean())

    assert accuracy("aa") <= accuracy("aa-fast") <= min(accuracy("apgd-ce"), accuracy("apgd-t"))


def test_only_the_standard_version_is_called_aa() -> None:
    assert (parse("aa", EPSILON).label, parse("aa-fast", EPSILON).label) == ("AA", "AA-fast")


def test_seed_is_that_of_the_generator() -> None:
    model, x, y = trained()
    attack = parse("apgd-ce", EPSILON)
    one, again, other = (attack(model, x, y, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_largest_seed() -> None:
    model, x, y = trained()
    generator = torch.Generator().manual_seed(2**64 - 1)
    assert parse("apgd-ce", EPSILON)(model, x[:1], y[:1], generator=generator).shape == x[:1].shape
