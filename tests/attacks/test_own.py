"""Attacks of people's own: callables, torchattacks, foolbox and ART in the place of specs."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from coprobe.attacks import Ball, as_attack, own
from coprobe.attacks.gradient import FGSM, PGD
from coprobe.data import Dataset
from coprobe.errors import InputError, RunError
from coprobe.metrics import Accuracy
from coprobe.probe import Probe
from tests.attacks.small import fingerprint, trained
from tests.toys import checkpoint

BALL = Ball(0.1)


def probe(epsilon: float = 0.1, **settings: Any) -> Probe:
    """The small trained network and the images it knows, as a checkpoint and a data set."""
    network, x, y = trained()
    images = Dataset((x * 255).round().to(torch.uint8), y, tuple("abcd"), "blobs", "test")
    loaded = checkpoint(network)
    loaded.arch_args = {"num_classes": 4, "in_channels": 1}
    return Probe(loaded, images, epsilon, **settings)


def pixels(one: Probe) -> tuple[Tensor, Tensor]:
    return one.dataset.images / 255, one.dataset.labels


def mine(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """One step of 0.1 along the sign of the gradient."""
    x = x.requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(model(x), y, reduction="sum"), x)
    return (x + 0.1 * gradient.sign()).clamp(0, 1)


def accuracy(one: Probe, x_adv: Tensor) -> float:
    with torch.no_grad():
        return float((one.stored_model.eval()(x_adv).argmax(1) == one.dataset.labels).double().mean())


def test_a_function_is_an_attack_wherever_a_spec_is_one(recwarn: pytest.WarningsRecorder) -> None:
    one = probe()
    spec = "fgsm:start=zero:rule=always"
    evaluation = one.evaluate([spec, mine])
    assert evaluation.accuracy("mine") == evaluation.accuracy(spec) < evaluation.accuracy("clean")
    assert evaluation.table()["attack"].tolist() == ["clean", "FGSM (start=zero, rule=always)", "mine"]
    ours, theirs = (one.activations(["2"], attack).frame for attack in (spec, mine))
    assert ours["difference_squared"].tolist() == pytest.approx(theirs["difference_squared"].tolist(), rel=1e-6)
    assert theirs.attrs["attack"] == "mine"
    masking = one.mask("2", [0.5], attacks=[mine], attack=mine, compare=["variance"])
    assert masking.evaluation.accuracy("mine") == evaluation.accuracy("mine")
    assert one.transfer([checkpoint_like(one)], [mine]).frame["attack"].unique().tolist() == ["clean", "mine"]
    assert len(one.overlap("2", mine)) > 0
    (measured,) = one.measure(Accuracy(attacks=(mine, "clean")))
    assert measured.accuracy("mine") == evaluation.accuracy("mine")
    assert not [warning for warning in recwarn.list if "ball" in str(warning.message)]


def checkpoint_like(one: Probe) -> Any:
    from copy import deepcopy

    other = deepcopy(one.checkpoint)
    with torch.no_grad():
        next(other.model.parameters()).mul_(1.01)
    return other


def test_an_attack_object_is_its_spec() -> None:
    one = probe()
    evaluation = one.evaluate([PGD(epsilon=0.1, iterations=3), "fgsm"])
    assert evaluation.accuracy("pgd:3") == one.evaluate(["pgd:3"]).accuracy("pgd:3")
    steps = one.increments(["2"], PGD(epsilon=0.1, iterations=3))
    assert steps.frame.equals(one.increments(["2"], "pgd:3").frame)


def test_torchattacks_is_called_as_its_objects_are() -> None:
    torchattacks = pytest.importorskip("torchattacks")
    one = probe()
    x, y = pixels(one)
    theirs = torchattacks.PGD(one.checkpoint.model, eps=0.1, alpha=0.03, steps=4, random_start=False)
    evaluation = one.evaluate([theirs, "pgd:4:start=zero:rule=always:step-size=7.65"])
    expected = accuracy(one, theirs(x, y))
    assert evaluation.accuracy("torchattacks.PGD") == expected
    assert evaluation.accuracy("pgd:4:start=zero:rule=always:step-size=7.65") == pytest.approx(expected, abs=0.02)
    made = own(lambda model, x, y: torchattacks.PGD(model, eps=0.1, alpha=0.03, steps=4, random_start=False)(x, y), "T")
    assert one.evaluate([made]).accuracy("T") == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("training", [False, True])
def test_torchattacks_leaves_the_modes_of_the_network_as_they_were(training: bool) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    network = trained()[0].train(training)
    network[1].eval()
    try:
        one = Probe(network, (trained()[1][:8], trained()[2][:8]), 0.1, say=lambda text: None)
        before = fingerprint(network)
        one.evaluate([torchattacks.PGD(one.checkpoint.model, eps=0.1, alpha=0.03, steps=2)])
        assert fingerprint(network) == before
    finally:
        network.eval()


def test_foolbox_gets_the_epsilon_of_the_probe() -> None:
    import foolbox

    one = probe()
    x, y = pixels(one)
    theirs = foolbox.attacks.LinfPGD(abs_stepsize=0.03, steps=4, random_start=False)
    model = foolbox.PyTorchModel(one.checkpoint.model.eval(), bounds=(0, 1))
    expected = accuracy(one, theirs(model, x, y, epsilons=0.1)[1])
    assert one.evaluate([own(theirs, "F")]).accuracy("F") == expected
    name = "foolbox.LinfProjectedGradientDescentAttack"
    assert one.evaluate([theirs]).accuracy(name) == expected
    l2 = foolbox.attacks.L2PGD(abs_stepsize=0.3, steps=4, random_start=False)
    ours = "pgd:4:start=zero:rule=always:step-size=0.3"
    evaluation = probe(1.0, norm="l2").evaluate([own(l2, "F"), ours])
    assert evaluation.accuracy("F") == evaluation.accuracy(ours) < evaluation.accuracy("clean")


def test_art_gets_arrays() -> None:
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    one = probe()
    classifier = PyTorchClassifier(
        one.checkpoint.model.eval(), nn.CrossEntropyLoss(), (1, 6, 5), 4, clip_values=(0, 1), device_type="cpu"
    )
    theirs = evasion.FastGradientMethod(classifier, eps=0.1)
    expected = one.evaluate(["fgsm:start=zero:rule=always"]).accuracy("fgsm:start=zero:rule=always")
    assert one.evaluate([theirs]).accuracy("art.FastGradientMethod") == pytest.approx(expected, abs=0.02)


def test_functions_with_settings() -> None:
    """As those of adv-lib are, which take (model, inputs, labels) and more."""
    half, whole = functools.partial(scaled, by=0.5), functools.partial(scaled, by=1.0)
    evaluation = probe().evaluate([own(half, "half"), own(whole, "whole"), half, mine])
    assert evaluation.accuracy("half") == evaluation.accuracy("scaled") > evaluation.accuracy("whole")
    assert evaluation.accuracy("whole") == evaluation.accuracy("mine")


def scaled(model: nn.Module, x: Tensor, y: Tensor, *, by: float = 1.0) -> Tensor:
    return x + by * (mine(model, x, y) - x)


@pytest.mark.parametrize(
    "attack",
    [
        lambda model, x, y=None: mine(model, x, y).clone(),
        lambda model, *rest: mine(model, rest[0], rest[1]),
        lambda net, x, y, by=1.0: mine(net, x, y),
        lambda *every: mine(*every).clone(),
    ],
)
def test_a_first_place_called_model_is_the_models(attack: Any) -> None:
    assert probe().evaluate([own(attack, "a")]).accuracy("a") == probe().evaluate([mine]).accuracy("mine")


def zeroing(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    return x


def hooking(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    model.register_forward_hook(lambda module, inputs, output: output * 0)
    return x


def test_what_leaves_the_ball_is_said_with_the_largest_excess() -> None:
    one = probe(0.04)
    with pytest.warns(UserWarning, match=r"mine: 64 of 64 images lie outside the ball of 10.2/255, by up to 15.3/255"):
        evaluation = one.evaluate([mine])
    assert evaluation.frame.attrs["outside"] == {"mine": [64, 64, pytest.approx(0.06)]}
    assert evaluation.accuracy("mine") == probe().evaluate([mine]).accuracy("mine"), "measured as they are"
    with pytest.warns(UserWarning, match=r"outside the ball of 0.3 \(L2\), by up to 0\.2"):
        probe(0.3, norm="l2").evaluate([mine])


@pytest.mark.parametrize(
    ("attack", "error", "message"),
    [
        (lambda model, x, y: x[:, :, 1:], InputError, r"attack 'own attack' gives a tensor \(64, 1, 5, 5\) for images"),
        (lambda model, x, y: (x, y), InputError, "attack 'own attack' gives a tuple for images"),
        (lambda model, x, y: None, InputError, "attack 'own attack' gives a NoneType for images"),
        (lambda model, x, y: x * torch.nan, RunError, "attack 'own attack' gives images that are not finite"),
        (lambda model, x, y: (x - 0.5) / 0.25, InputError, r"gives pixels from -.* to .*; images lie in \[0, 1\]"),
        (lambda model, x, y: x * 255, InputError, r"gives pixels from .* clamp them, and leave normalisation"),
        (zeroing, InputError, "attack 'zeroing' changes weights or hooks of the network, so that nothing after it"),
        (hooking, InputError, "attack 'hooking' changes weights or hooks of the network"),
        (lambda model, x, y, eps: x, InputError, "attack own attack also needs eps; bind it with functools.partial"),
        (lambda model, x, y, *, eps: x, InputError, "attack own attack also needs eps; bind it"),
        (3, InputError, r"attack 3: give a spec, or something that is called as attack\(model, x, y\)"),
        (PGD(epsilon=0.2), InputError, "PGD-10 attacks in the ball of 51/255, and the probe in that of 25.5/255; make"),
        (PGD(epsilon=0.1, norm="l2"), InputError, r"in the ball of 0.1 \(L2\), and the probe in that of 25.5/255"),
        ("pdg", InputError, "unknown attack 'pdg'"),
    ],
)
def test_errors(attack: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        probe().evaluate([attack])


def test_two_of_one_name_are_not_mixed() -> None:
    one = probe()
    two = [lambda model, x, y: x, lambda model, x, y: mine(model, x, y) * 1]
    with pytest.raises(InputError, match=r"two attacks are called 'own attack'; name one: coprobe.attacks.own"):
        one.evaluate(two)
    named = one.evaluate([own(two[0], "still"), own(two[1], "mine")])
    assert named.accuracy("still") == named.accuracy("clean") > named.accuracy("mine")
    with pytest.raises(InputError, match="two attacks are called 'own attack'"):
        one.measure(Accuracy(attacks=(two[0],)), Accuracy(attacks=(two[1],)))


def test_a_name_that_is_taken_is_said_to_be_an_own_one() -> None:
    def pgd(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return x

    assert [as_attack(one, BALL).label for one in (pgd, own(pgd, "pgd:50"), own(pgd, "clean"))] == [
        "own pgd",
        "own pgd:50",
        "own clean",
    ]
    evaluation = probe().evaluate([pgd, "pgd:2"])
    assert evaluation.table()["attack"].tolist() == ["clean", "own pgd", "PGD-2"]


class Counted:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return x


def test_results_are_kept_only_of_what_says_what_it_is(tmp_path: Path) -> None:
    nameless, named = Counted(), Counted()
    for _ in range(2):
        probe(cache=tmp_path).evaluate([nameless])
        probe(cache=tmp_path).evaluate([own(named, "still", "returns the images, version 1")])
    assert (nameless.calls, named.calls) == (2, 1)
    probe(cache=tmp_path).evaluate([own(named, "still", "returns the images, version 2")])
    assert named.calls == 2


def test_images_that_were_crafted_are_shared() -> None:
    counted, one = Counted(), probe()
    with one.keeping():
        one.evaluate([counted])
        one.activations(["2"], counted)
    assert counted.calls == 1


def by_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(np.random.rand(*x.shape))  # noqa: NPY002 - what people's code does


@pytest.mark.parametrize("draw", [torch.rand_like, by_numpy, lambda x: x * 0 + random.random()])
def test_its_random_numbers_are_those_of_the_seed(draw: Any) -> None:
    def noisy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return (x + 0.2 * (draw(x) - 0.5)).clamp(0, 1)

    model, x, y = trained()
    attack = as_attack(noisy, BALL)
    torch.manual_seed(1), np.random.seed(1), random.seed(1)  # noqa: NPY002
    before = fingerprint(model)
    first = attack(model, x, y, seed=3)
    assert fingerprint(model) == before
    torch.manual_seed(2), np.random.seed(2), random.seed(2)  # noqa: NPY002
    assert torch.equal(attack(model, x, y, seed=3), first)
    assert not torch.equal(attack(model, x, y, seed=4), first)


def test_it_cannot_change_the_images_or_the_model() -> None:
    def rude(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        model.train()
        with torch.no_grad():
            y.zero_()
            return x.mul_(0.99)

    model, x, y = trained()
    before, images, labels = fingerprint(model), x.clone(), y.clone()
    x_adv = as_attack(rude, BALL)(model, x, y)
    assert torch.equal(x, images) and torch.equal(y, labels) and fingerprint(model) == before
    assert torch.allclose(x_adv, x * 0.99)


def test_an_attack_that_is_made_with_its_model_needs_none() -> None:
    one = probe()

    class Made:
        def __init__(self, model: nn.Module) -> None:
            self.model = model

        def perturb(self, x: Tensor, y: Tensor) -> Tensor:
            return mine(self.model, x, y)

    made = Made(one.checkpoint.model)
    evaluation = one.evaluate([made.perturb, mine])
    assert evaluation.accuracy("Made.perturb") == evaluation.accuracy("mine")


def test_a_subclass_of_attack_is_kept_by_its_fields(tmp_path: Path) -> None:
    class Other(FGSM):
        name = "other"

    assert as_attack(Other(epsilon=0.1), BALL).identified
    assert probe(cache=tmp_path).evaluate([Other(epsilon=0.1)]).frame["attack"].tolist() == ["clean", "other"]
