"""Attacks against closed forms, literal references and chance."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from coprobe.attacks import parse
from coprobe.attacks.base import PURPOSE
from coprobe.attacks.gradient import CW, PGD
from coprobe.core.randomness import ImageRandomness
from coprobe.errors import InputError
from tests.attacks.small import convolutional, linear, loss_of, trained

SHAPE = (3, 4, 5)


def grey(batch: int, seed: int = 0) -> Tensor:
    """Images so far from 0 and 1 that only the ball limits them."""
    return 0.4 + 0.2 * torch.rand(batch, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model_in_double(classes: int) -> tuple[nn.Module, Tensor]:
    """A linear model and its weights (classes, *SHAPE)."""
    model = linear(SHAPE, classes).double()
    return model, model[1].weight.detach().view(classes, *SHAPE)


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
@pytest.mark.parametrize("spec", ["fgsm:start=zero:rule=always", "pgd:1:start=zero:rule=always:step-size=25.5"])
def test_one_step_on_two_classes(spec: str, batch: int) -> None:
    x, y = grey(batch), torch.arange(batch) % 2
    model, weight = model_in_double(2)
    x_adv = parse(spec, 0.1)(model, x, y)
    expected = x + 0.1 * (weight[1 - y] - weight[y]).sign()
    assert torch.allclose(x_adv, expected, rtol=0, atol=1e-12)


def test_one_step_on_many_classes() -> None:
    """The gradient of the cross-entropy is Σ_j p_j w_j − w_y."""
    x, y = grey(3), torch.tensor([4, 0, 2])
    model, weight = model_in_double(5)
    p = model(x).softmax(1).detach()
    gradient = torch.einsum("nj,jchw->nchw", p, weight) - weight[y]
    x_adv = parse("fgsm:start=zero:rule=always", 0.1)(model, x, y)
    assert torch.allclose(x_adv, x + 0.1 * gradient.sign(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["pgd", "cw"])
@pytest.mark.parametrize("iterations", [1, 2, 4, 5, 12])
def test_k_steps_reach_the_smaller_of_k_steps_and_the_radius(name: str, iterations: int) -> None:
    x, y = grey(2), torch.tensor([0, 1])
    model, weight = model_in_double(2)
    attack = parse(f"{name}:{iterations}:start=zero:rule=always:step-size=5.1", 0.09)  # 5.1/255 = 0.02
    reached = min(0.09, iterations * 0.02)
    expected = x + reached * (weight[1 - y] - weight[y]).sign()
    assert torch.allclose(attack(model, x, y), expected, rtol=0, atol=1e-12)


def test_pixel_range_limits_the_step() -> None:
    x = torch.zeros(1, *SHAPE, dtype=torch.float64)
    x[..., 1:] = 1
    model, weight = model_in_double(2)
    x_adv = parse("fgsm:start=zero", 0.1)(model, x, model(x).argmax(1))
    step = (weight[1] - weight[0]) * (1 if model(x).argmax(1) == 0 else -1)
    assert torch.equal(x_adv != x, ((x == 0) == (step > 0))[0:1])


@settings(deadline=None, derandomize=True)
@given(
    logits=st.lists(st.lists(st.floats(-50, 50), min_size=4, max_size=4), min_size=1, max_size=5),
    labels=st.lists(st.integers(0, 3), min_size=5, max_size=5),
)
def test_margin_is_the_literal_loop(logits: list[list[float]], labels: list[int]) -> None:
    y = labels[: len(logits)]
    expected = []
    for row, label in zip(logits, y, strict=True):
        best = -math.inf
        for j, z in enumerate(row):
            if j != label and z > best:
                best = z
        expected.append(best - row[label])
    assert CW.loss(torch.tensor(logits, dtype=torch.float64), torch.tensor(y)).tolist() == expected


def test_margin_moves_along_the_runner_up() -> None:
    x = grey(3)
    model, weight = model_in_double(5)
    order = model(x).argsort(1, descending=True)
    x_adv = parse("cw:1:start=zero:step-size=5.1", 0.09)(model, x, order[:, 0])
    assert torch.allclose(x_adv, x + 0.02 * (weight[order[:, 1]] - weight[order[:, 0]]).sign(), rtol=0, atol=1e-12)


def start_of(x: Tensor, epsilon: float, seed: int, restart: int = 0) -> Tensor:
    """A random start of images 0, 1, …"""
    noise = ImageRandomness(seed, PURPOSE, torch.arange(len(x))).uniform(x.shape[1:], restart).to(x.dtype)
    return (x + (2 * noise - 1) * epsilon).clamp(x - epsilon, x + epsilon).clamp(0, 1)


def literal_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    start: Tensor,
    epsilon: float,
    step: float,
    steps: int,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> Tensor:
    """PGD one image and one pixel at a time; an image stops once it is misclassified."""
    done = []
    for image, label, point in zip(x, y, start, strict=True):
        current = point.clone()
        for _ in range(steps):
            leaf = current[None].clone().requires_grad_()
            logits = model(leaf)
            if logits.argmax() != label:
                break
            loss(logits, label[None]).backward()
            assert leaf.grad is not None
            pixels = []
            for p, g, centre in torch.stack([current, leaf.grad[0], image], -1).view(-1, 3).tolist():
                moved = p + step * ((g > 0) - (g < 0))
                pixels.append(min(max(min(max(moved, centre - epsilon), centre + epsilon), 0.0), 1.0))
            current = torch.tensor(pixels, dtype=x.dtype).view_as(image)
        done.append(current)
    return torch.stack(done)


@pytest.mark.parametrize("start", ["uniform", "zero"])
def test_until_misclassified_is_the_literal_loop(start: str) -> None:
    trained_model, images, y = trained()
    model = nn.Sequential(trained_model).double()
    try:
        x, y = images[:24].double(), y[:24]
        first = start_of(x, 0.06, 9) if start == "uniform" else x
        expected = literal_pgd(model, x, y, first, 0.06, 0.02, 6)
        attack = PGD(epsilon=0.06, iterations=6, step_size=0.02, start=start)
        iterates = list(attack.steps(model, x, y, seed=9))
        x_adv = attack(model, x, y, seed=9)
        wrong = [(model(x_t).argmax(1) != y) for x_t in iterates]
    finally:
        model.float()
    assert torch.allclose(x_adv, expected, rtol=0, atol=1e-12)
    # the oracle means something only where some stop at once, some on the way and some never
    assert wrong[0].any() and not wrong[-1].all() and wrong[3].sum() > wrong[0].sum()
    for before, after, stopped in zip(iterates, iterates[1:], wrong, strict=False):
        assert torch.equal(before[stopped], after[stopped])


@pytest.mark.parametrize("spec", ["fgsm", "pgd:5", "pgd:5:rule=always:start=zero", "cw:4"])
def test_steps_end_where_the_call_ends(spec: str) -> None:
    model, x, y = trained()
    attack = parse(spec, 0.05)
    iterates = list(attack.steps(model, x, y, seed=4))  # type: ignore[attr-defined]
    assert len(iterates) == attack.schedule[0] + 1  # type: ignore[attr-defined]
    assert torch.equal(iterates[-1], attack(model, x, y, seed=4))
    assert torch.equal(iterates[0], x) == ("start=zero" in spec)
    assert all((x_t - x).abs().max() <= 0.05 + 1e-6 for x_t in iterates)


def test_start_is_uniform_in_the_ball() -> None:
    x = torch.full((64, *SHAPE), 0.5)
    start = next(parse("pgd", 0.1).steps(linear(SHAPE, 2), x, torch.zeros(64).long())) - x  # type: ignore[attr-defined]
    n = start.numel()
    assert abs(start.mean()) < 4 * 0.1 / math.sqrt(3 * n)
    assert abs(start.std() - 0.1 / math.sqrt(3)) < 0.002
    assert start.abs().max() > 0.0995


@pytest.mark.parametrize("plain", [False, True])
def test_restarts_keep_the_largest_cross_entropy_of_runs_from_other_starts(plain: bool) -> None:
    model, x, y = trained()
    model, x = deepcopy(model).double(), x.double()
    runs = [literal_pgd(model, x, y, start_of(x, 0.08, 7, restart), 0.08, 2 / 255, 3) for restart in range(3)]
    losses = torch.stack([loss_of(model, run, y) for run in runs])
    expected = torch.stack([runs[k][i] for i, k in enumerate(losses.argmax(0).tolist())])
    x_adv = PGD(epsilon=0.08, iterations=3, restarts=3)(model, x, y, seed=7, plain=plain)
    assert losses.argmax(0).unique().tolist() == [0, 1, 2]
    assert torch.allclose(x_adv, expected, rtol=0, atol=1e-12)
    single = PGD(epsilon=0.08, iterations=3)(model, x, y, seed=7, plain=plain)
    assert torch.allclose(single, runs[0], rtol=0, atol=1e-12), "the first of several is the only one of one"


@pytest.mark.parametrize("plain", [False, True])
def test_restarts_of_the_margin_attack_are_chosen_by_cross_entropy(plain: bool) -> None:
    model, x, y = trained()
    model, x = deepcopy(model).double(), x.double()
    runs = [
        literal_pgd(model, x, y, start_of(x, 0.08, 7, restart), 0.08, 2 / 255, 2, lambda z, t: CW.loss(z, t).sum())
        for restart in range(2)
    ]
    losses = [loss_of(model, run, y) for run in runs]
    x_adv = CW(epsilon=0.08, iterations=2, restarts=2)(model, x, y, seed=7, plain=plain)
    expected = torch.where((losses[1] > losses[0]).view(-1, 1, 1, 1), runs[1], runs[0])
    assert torch.allclose(x_adv, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(runs[0], runs[1]) and 0 < (losses[1] > losses[0]).sum() < len(x)


def test_beats_noise_of_the_same_radius_and_more_steps_beat_one() -> None:
    model, x, y = trained()
    generator = torch.Generator().manual_seed(0)
    noise = (x + 0.05 * (2 * torch.rand(x.shape, generator=generator) - 1)).clamp(0, 1)
    clean, noisy = loss_of(model, x, y).mean(), loss_of(model, noise, y).mean()
    loss = {
        spec: loss_of(model, parse(spec, 0.05)(model, x, y), y).mean()
        for spec in ("fgsm:rule=always", "pgd:rule=always", "cw:rule=always")
    }
    assert abs(noisy - clean) < 0.2
    assert loss["fgsm:rule=always"] > noisy + 1
    assert loss["pgd:rule=always"] > loss["fgsm:rule=always"] + 1
    assert loss["cw:rule=always"] > noisy + 2


def test_an_image_does_not_depend_on_the_others() -> None:
    """The gradient is that of the sum, not of the mean, of the losses."""
    model = convolutional(SHAPE, 5).double()
    x, y = grey(5), torch.arange(5)
    attack = parse("pgd:5:start=zero", 0.05)
    together = attack(model, x, y)
    for i in range(5):
        assert torch.allclose(attack(model, x[i : i + 1], y[i : i + 1]), together[i : i + 1], rtol=0, atol=1e-9)


def test_no_gradient_is_too_small() -> None:
    """Confident images have tiny gradients; a threshold on them would fake robustness."""
    model = linear(SHAPE, 2)
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].weight[1] = -2.0
        model[1].bias.copy_(torch.tensor([-10.0, 0.0]))
    x = torch.full((4, *SHAPE), 0.75)  # margin 2·60·0.75 − 10 = 80: the gradient is about 1e-35
    x_adv = parse("fgsm:start=zero", 0.1)(model, x, torch.zeros(4).long())
    assert torch.allclose(x_adv, x - 0.1, rtol=0, atol=1e-6)


def literal_mi_fgsm(model: nn.Module, x: Tensor, y: Tensor, epsilon: float, steps: int, decay: float) -> Tensor:
    """Dong et al. 2018, Algorithm 1, image by image and pixel by pixel."""
    made = []
    for image, label in zip(x, y, strict=True):
        point, momentum = image.clone(), torch.zeros_like(image)
        for _ in range(steps):
            inside = point[None].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(cross_entropy(model(inside), label[None]), inside)
            momentum = decay * momentum + gradient[0] / sum(abs(value) for value in gradient.flatten().tolist())
            moved = [
                min(max(p + epsilon / steps * math.copysign(1, m) * (m != 0), c - epsilon, 0), c + epsilon, 1)
                for p, m, c in zip(
                    point.flatten().tolist(), momentum.flatten().tolist(), image.flatten().tolist(), strict=True
                )
            ]
            point = torch.tensor(moved, dtype=x.dtype).view_as(image)
        made.append(point)
    return torch.stack(made)


@pytest.mark.parametrize(("steps", "decay"), [(10, 1.0), (4, 0.5), (3, 0.0)])
def test_mi_fgsm_is_its_literal_algorithm(steps: int, decay: float) -> None:
    model, x, y = trained()
    model, x, y = deepcopy(model).double(), x[:6].double(), y[:6]
    attack = parse(f"mi-fgsm:{steps}:decay={decay}:rule=always", 0.1)
    expected = literal_mi_fgsm(model, x, y, 0.1, steps, decay)
    torch.testing.assert_close(attack(model, x, y), expected, rtol=0, atol=1e-9)
    assert (expected - x).abs().max() == pytest.approx(0.1) and attack.label.startswith(f"MI-FGSM-{steps}")


def test_mi_fgsm_is_that_of_torchattacks() -> None:
    torchattacks = pytest.importorskip("torchattacks")
    model, x, y = trained()
    theirs = torchattacks.MIFGSM(model, eps=0.1, alpha=0.01, steps=10, decay=1.0)(x, y)
    torch.testing.assert_close(parse("mi-fgsm:rule=always", 0.1)(model, x, y), theirs, rtol=0, atol=1e-5)


def test_momentum_carries_an_image_where_the_gradient_has_turned() -> None:
    """Plain steps would go back and forth over the ridge of the loss; momentum goes on."""
    with pytest.raises(InputError, match="mi-fgsm: iterations 0: must be at least 1"):
        parse("mi-fgsm:0", 0.1)
    with pytest.raises(InputError, match="mi-fgsm: decay -1: must be a number of at least 0"):
        parse("mi-fgsm:decay=-1", 0.1)

    class Ridge(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            away = (x.mean((1, 2, 3)) - 0.525).abs()  # label 0 is least likely at 0.525
            return torch.stack([away, -away], 1)

    x, y = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0])
    ends = {decay: float(parse(f"mi-fgsm:4:decay={decay}:rule=always", 0.08)(Ridge(), x, y).mean()) for decay in (0, 1)}
    assert ends == {0: pytest.approx(0.54), 1: pytest.approx(0.56)}
