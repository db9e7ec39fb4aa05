"""L2 and targeted attacks: against literal loops, and against foolbox from the same start."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from coprobe.attacks import Ball, parse
from coprobe.attacks.ball import steepest
from coprobe.attacks.base import PURPOSE
from coprobe.attacks.gradient import CW, PGD
from coprobe.core.randomness import ImageRandomness
from coprobe.errors import InputError
from tests.attacks.small import linear, trained

EPSILON = 0.4
FIXED = "start=zero:rule=always:step-size"


def double(count: int) -> tuple[nn.Module, Tensor, Tensor]:
    model, x, y = trained()
    return deepcopy(model).double(), x[:count].double(), y[:count]


def literal(model: nn.Module, x: Tensor, labels: Tensor, epsilon: float, step: float, steps: int, sign: int) -> Tensor:
    """L2 PGD one image at a time: the gradient over its length, the ball, then the box."""
    done = []
    for image, label in zip(x, labels, strict=True):
        current = image.clone()
        for _ in range(steps):
            leaf = current[None].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(sign * cross_entropy(model(leaf), label[None]), leaf)
            away = current + step * gradient[0] / math.sqrt(float(gradient.square().sum())) - image
            away = away * min(1.0, epsilon / math.sqrt(float(away.square().sum())))
            current = (image + away).clamp(0, 1)
        done.append(current)
    return torch.stack(done)


@pytest.mark.parametrize(("target", "sign"), [("none", 1), ("next", -1), ("2", -1)])
def test_l2_pgd_is_the_literal_loop(target: str, sign: int) -> None:
    model, x, y = double(8)
    labels = {"none": y, "next": (y + 1) % 4, "2": torch.where(y == 2, 3, 2)}[target]
    attack = parse(f"pgd:5:{FIXED}=0.15:target={target}", EPSILON, "l2")
    expected = literal(model, x, labels, EPSILON, 0.15, 5, sign)
    assert torch.allclose(attack(model, x, y), expected, rtol=0, atol=1e-12)
    lengths = (expected - x).flatten(1).norm(dim=1)
    assert (lengths > EPSILON - 1e-9).any() and (lengths <= EPSILON + 1e-12).all(), "the ball has to matter"


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("target", ["none", "next"])
def test_pgd_is_that_of_foolbox_from_the_same_start(norm: str, target: str) -> None:
    import foolbox

    model, x, y = trained()
    x, y = x[:16], y[:16]
    epsilon, step = (0.05, 0.02) if norm == "linf" else (0.4, 0.15)
    kind = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD
    wanted = foolbox.criteria.Misclassification(y)
    if target == "next":
        wanted = foolbox.criteria.TargetedMisclassification((y + 1) % 4)
    theirs = kind(abs_stepsize=step, steps=6, random_start=False)
    expected, *_ = theirs(foolbox.PyTorchModel(model, bounds=(0, 1)), x, wanted, epsilons=epsilon)
    size = step * 255 if norm == "linf" else step
    x_adv = parse(f"pgd:6:{FIXED}={size}:target={target}", epsilon, norm)(model, x, y)
    assert (x_adv - expected).abs().max() < 1e-5
    assert (x_adv - x).abs().max() > 0.01


def test_l2_pgd_is_that_of_torchattacks_from_the_same_start() -> None:
    torchattacks = pytest.importorskip("torchattacks")
    model, x, y = trained()
    x, y = x[:16], y[:16]
    # what it adds to the length of a gradient weighs as much as the gradients of confident images
    theirs = torchattacks.PGDL2(model, eps=0.4, alpha=0.15, steps=6, random_start=False, eps_for_division=0)
    expected = theirs(x, y)
    x_adv = parse(f"pgd:6:{FIXED}=0.15", 0.4, "l2")(model, x, y)
    assert (x_adv - expected).abs().max() < 1e-5


@pytest.mark.parametrize("spec", ["fgsm", "fgsm:start=zero", "cw:4", "mi-fgsm:4", "pgd-eot:2:samples=2"])
def test_every_gradient_attack_stays_in_the_l2_ball_and_does_something(spec: str) -> None:
    model, x, y = trained()
    attack = parse(spec, EPSILON, "l2")
    x_adv = attack(model, x, y)
    lengths = (x_adv - x).flatten(1).norm(dim=1)
    assert lengths.max() <= EPSILON + 1e-6 and x_adv.min() >= 0 and x_adv.max() <= 1
    with torch.no_grad():
        before, after = ((model(images).argmax(1) == y).sum() for images in (x, x_adv))
    assert after < before - 5
    assert torch.equal(attack(model, x, y, plain=True), x_adv)


def test_one_l2_step_on_two_classes() -> None:
    model = linear((3, 4, 5), 2).double()
    weight = model[1].weight.detach().view(2, 3, 4, 5)
    x, y = torch.full((2, 3, 4, 5), 0.5, dtype=torch.float64), torch.tensor([0, 1])
    x_adv = parse("fgsm:start=zero:rule=always", 0.3, "l2")(model, x, y)
    away = weight[1 - y] - weight[y]
    expected = x + 0.3 * away / away.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert torch.allclose(x_adv, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("spec", ["apgd-ce", "square"])
def test_members_of_autoattack_stay_in_the_l2_ball(spec: str) -> None:
    model, x, y = trained()
    with torch.no_grad():
        right = (model(x).argmax(1) == y).nonzero()[:4, 0]
    x, y = x[right], y[right]
    x_adv = parse(spec, 1.0, "l2")(model, x, y)
    lengths = (x_adv - x).flatten(1).norm(dim=1)
    assert 0.5 < lengths.max() <= 1 + 1e-5
    assert (x_adv - x).abs().max() > 0.1, "and use it"


def test_random_starts_fill_the_l2_ball() -> None:
    """The share within the radius r of n dimensions is r to the power of n."""
    x = torch.full((2000, 1, 1, 3), 0.5)
    points = Ball(0.25, "l2").random(x, ImageRandomness(3, PURPOSE, torch.arange(2000)))
    lengths = (points - x).flatten(1).norm(dim=1) / 0.25
    assert lengths.max() <= 1 + 1e-6
    for r in (0.5, 0.8, 0.9):
        assert abs(float((lengths < r).float().mean()) - r**3) < 0.03
    assert (points - x).flatten(1).mean(0).abs().max() < 0.01


def test_small_gradients_have_a_direction() -> None:
    gradient = torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)
    for scale in (1.0, 1e-20, 1e-37, 1e30):
        assert torch.allclose(steepest(gradient * scale, "l2").flatten(), torch.tensor([0.6, 0.8]))
    assert torch.equal(steepest(gradient * 0, "l2"), gradient * 0)
    assert steepest(gradient * math.nan, "l2").isnan().all()


def test_random_targets_are_other_classes_and_the_images_own() -> None:
    attack = PGD(epsilon=0.1, target="random")
    y = torch.arange(4000) % 5
    randomness = ImageRandomness(1, PURPOSE, torch.arange(4000))
    targets, sign = attack.aim(torch.zeros(4000, 5), y, randomness)
    assert sign == -1 and (targets != y).all()
    assert ((targets - y) % 5).bincount(minlength=5)[1:].min() > 900
    some = torch.tensor([7, 3000])
    assert torch.equal(attack.aim(torch.zeros(2, 5), y[some], randomness.of(some))[0], targets[some])


@pytest.mark.parametrize("make", [PGD, CW])
def test_a_targeted_image_stops_at_its_target(make: type[PGD]) -> None:
    model, x, y = trained()
    attack = make(epsilon=0.3, iterations=30, step_size=0.02, target="next")
    iterates = list(attack.steps(model, x, y))
    with torch.no_grad():
        reached = [model(x_t).argmax(1) == (y + 1) % 4 for x_t in iterates]
    assert reached[-1].sum() > reached[0].sum() + 10
    for before, after, there in zip(iterates, iterates[1:], reached, strict=False):
        assert torch.equal(before[there], after[there])
    assert torch.equal(attack(model, x, y), iterates[-1])


def test_of_targeted_restarts_the_one_nearest_to_the_target_is_kept() -> None:
    model, x, y = trained()
    one = PGD(epsilon=0.1, iterations=2, target="next", rule="always")
    several = PGD(epsilon=0.1, iterations=2, target="next", rule="always", restarts=4)

    def losses(images: Tensor) -> Tensor:
        with torch.no_grad():
            return cross_entropy(model(images), (y + 1) % 4, reduction="none")

    assert (losses(several(model, x, y)) <= losses(one(model, x, y))).all()
    assert (losses(several(model, x, y)) < losses(one(model, x, y))).any()


def test_steps_without_a_size_reach_the_radius() -> None:
    assert PGD(epsilon=0.5, iterations=10, norm="l2").step_size == pytest.approx(0.125)
    assert PGD(epsilon=0.5, iterations=10, norm="l2").spec == "pgd:10"
    assert parse("pgd:20:step-size=0.1", 0.5, "l2").spec == "pgd:20:step-size=0.1"
    assert parse("pgd-eot:noise=8", 0.5, "l2").noise == 8 / 255  # type: ignore[attr-defined]
    assert parse("pgd", 0, "l2").spec == "pgd:10"


@pytest.mark.parametrize(
    ("spec", "epsilon", "norm", "message"),
    [
        ("pgd", 0.5, "l3", "unknown norm 'l3'; did you mean l2?"),
        ("fgsm", -0.5, "l2", "epsilon -0.5: must be a number of at least 0, in units of images in [0, 1]"),
        ("fgsm", math.inf, "l2", "epsilon inf: must be a number of at least 0, in units of images in [0, 1]"),
        ("aa", math.nan, "l2", "epsilon nan: must be a number of at least 0, in units of images in [0, 1]"),
        ("pgd:step-size=0", 0.5, "l2", "pgd: step-size 0: must be above 0"),
        ("pgd:step-size=inf", 0.5, "l2", "pgd: step-size inf: must be above 0"),
        ("pgd:norm=l2", 0.5, "l2", "attack 'pgd:norm=l2': 'norm=l2' is no option of pgd; it takes start, rule, "
         "iterations, step-size, restarts, target"),
        ("pgd:target=all", 0.1, "linf", "pgd: target 'all' is none of none, next, random, or the number of a class"),
    ],
)  # fmt: skip
def test_errors(spec: str, epsilon: float, norm: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse(spec, epsilon, norm)
    assert str(error.value) == message


@pytest.mark.parametrize("make", [PGD, CW])
def test_images_of_the_target_class_are_attacked_too(make: type[PGD]) -> None:
    model, x, y = trained()
    x, y = x[y == 3], y[y == 3]
    x_adv = make(epsilon=0.3, iterations=30, step_size=0.02, target="3")(model, x, y)
    with torch.no_grad():
        assert (model(x).argmax(1) == 0).float().mean() < 0.2 and (model(x_adv).argmax(1) == 0).float().mean() > 0.8


def test_a_target_that_the_model_does_not_know() -> None:
    model, x, y = trained()
    with pytest.raises(InputError, match="pgd: target 4: the model has classes 0 to 3"):
        parse("pgd:2:target=4", 0.1)(model, x, y)
