"""One step of every method equals a slow, literal reference written from its formula (float64)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from torch import Tensor, nn

from coprobe.data import Batch, Dataset, Loader
from coprobe.errors import InputError
from coprobe.training import METHODS, Recipe, make_method
from coprobe.training.methods import Method
from coprobe.training.regularizers import FeatureStability, LogitStability
from coprobe.training.trainer import TrainingLoop

EPSILON = 16 / 255
CLASSES = 5
LR, MOMENTUM, DECAY = 0.1, 0.9, 5e-4


class Tiny(nn.Module):
    """A convolution with batch norm, a ReLU and a linear layer, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)
        self.relu = nn.ReLU()
        self.linear = nn.Linear(3 * 4 * 5, CLASSES)
        self.double()

    def features(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).flatten(1))


@pytest.fixture
def model() -> Tiny:
    torch.manual_seed(3)
    return Tiny().train()


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(4)
    images = torch.rand(6, 2, 4, 5, generator=generator, dtype=torch.float64)
    images[0, :, :2] = 0.0  # some pixels at the borders of the range, where the clamp bites
    images[1, :, 2:] = 1.0
    return Batch(images, torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([5, 2, 7, 0, 3, 6]))


def make(name: str, **common: float) -> Method:
    method = make_method(name, {}, epsilon=EPSILON, seed=1, **common)
    method.begin_epoch(0, images=8, shape=(2, 4, 5), device=torch.device("cpu"))
    for field in fields(method):
        if isinstance(value := getattr(method, field.name, None), Tensor):
            setattr(method, field.name, value.double())
    return method


def reference_clip(value: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    low, high = torch.as_tensor(low, dtype=value.dtype), torch.as_tensor(high, dtype=value.dtype)
    return torch.minimum(torch.maximum(value, low), high)


def soft_cross_entropy(logits: Tensor, labels: Tensor, factor: float) -> Tensor:
    total = torch.zeros((), dtype=logits.dtype)
    for row, label in zip(logits, labels, strict=True):
        log_p = row - torch.logsumexp(row, 0)
        for k in range(CLASSES):
            total = total - (factor if k == label else (1 - factor) / (CLASSES - 1)) * log_p[k]
    return total / len(labels)


Reference = Callable[[Tiny, Batch, Method], tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]]


def single_step(model: Tiny, batch: Batch, delta0: Tensor, step: float, factor: float) -> tuple[Tensor, Tensor]:
    """(x + δ, gradient at x + δ0): δ = clip_ε(δ0 + step · sign g), then x + δ into [0, 1]."""
    delta = delta0.clone().requires_grad_()
    soft_cross_entropy(model(batch.images + delta), batch.labels, factor).backward()
    assert delta.grad is not None
    moved = reference_clip(delta0 + step * delta.grad.sign(), -EPSILON, EPSILON)
    return reference_clip(batch.images + moved, 0, 1), delta.grad


def reference_clean(model: Tiny, batch: Batch, method: Method) -> tuple[Tensor, Tensor, float]:
    return batch.images, torch.zeros_like(batch.images), 1.0


def reference_fgsm(model: Tiny, batch: Batch, method: Method) -> tuple[Tensor, Tensor, float]:
    zero = torch.zeros_like(batch.images)
    return single_step(model, batch, zero, EPSILON, 1.0)[0], zero, 1.0


def reference_fgsm_rs(model: Tiny, batch: Batch, method: Method) -> tuple[Tensor, Tensor, float]:
    generator = torch.Generator().set_state(method.generator.get_state())
    draw = torch.rand(batch.images.shape, generator=generator)
    delta0 = reference_clip(batch.images + (2 * draw - 1) * EPSILON, 0, 1) - batch.images
    return single_step(model, batch, delta0, 1.25 * EPSILON, 1.0)[0], delta0, 1.0


def reference_fgsm_mep(model: Tiny, batch: Batch, method: Method) -> tuple[Tensor, Tensor, float]:
    delta0 = method._prior[batch.indices].clone()  # type: ignore[attr-defined]
    return single_step(model, batch, delta0, EPSILON, 0.6)[0], delta0, 0.6


REFERENCES = {
    "clean": reference_clean,
    "fgsm": reference_fgsm,
    "fgsm-rs": reference_fgsm_rs,
    "fgsm-mep": reference_fgsm_mep,
}


def test_every_method_has_a_reference() -> None:
    assert set(REFERENCES) == set(METHODS)


@pytest.mark.parametrize(
    ("name", "regularized"),
    [(name, False) for name in REFERENCES] + [(name, True) for name in REFERENCES if name != "clean"],
)
def test_one_update_equals_the_reference(name: str, regularized: bool, model: Tiny, batch: Batch) -> None:
    slow = copy.deepcopy(model)
    method = make(name)
    x_adv, delta0, factor = REFERENCES[name](copy.deepcopy(model), batch, method)

    # Literal update: both passes in training mode, gradients through both, SGD with momentum from rest.
    slow.zero_grad()
    if name != "clean":
        start_features = slow.features(batch.images + delta0)
        start_logits = slow.linear(start_features.flatten(1))
    features = slow.features(x_adv)
    logits = slow.linear(features.flatten(1))
    loss = soft_cross_entropy(logits, batch.labels, factor)
    if regularized:
        loss = loss + 20.0 * ((features - start_features) ** 2).mean() + 10.0 * ((logits - start_logits) ** 2).mean()
    loss.backward()
    with torch.no_grad():
        for parameter in slow.parameters():
            assert parameter.grad is not None
            parameter.sub_(LR * (parameter.grad + DECAY * parameter))

    loop = loop_for(model, method, regularized)
    loop.step(batch)
    for (key, fast_value), slow_value in zip(model.state_dict().items(), slow.state_dict().values(), strict=True):
        torch.testing.assert_close(fast_value, slow_value, rtol=0, atol=1e-8, msg=lambda m, key=key: f"{key}: {m}")


def loop_for(model: nn.Module, method: Method, regularized: bool) -> TrainingLoop:
    terms = [FeatureStability("relu", 20.0), LogitStability(10.0)] if regularized else []
    dataset = Dataset(
        torch.zeros(8, 2, 4, 5, dtype=torch.uint8), torch.arange(8) % CLASSES, tuple("abcde"), "t", "train"
    )
    recipe = Recipe(lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    return TrainingLoop(recipe, model, method, terms, Loader(dataset, 6))


def test_mep_memory_follows_the_formula(model: Tiny, batch: Batch) -> None:
    method = make("fgsm-mep")
    prior = method._prior.clone()  # type: ignore[attr-defined]
    momentum = torch.rand(prior.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 1e-3
    method._gradient = momentum.clone()  # type: ignore[attr-defined]
    assert (prior.abs() - EPSILON).abs().max() < 1e-8  # the corners of the ball
    assert prior.unique().numel() == 2
    delta0 = prior[batch.indices]
    _, gradient = single_step(copy.deepcopy(model), batch, delta0, EPSILON, 0.6)
    method.perturb(model, batch, keep_graph=False)

    expected_momentum = momentum.clone()
    expected_prior = prior.clone()
    norm = sum(abs(float(value)) for value in gradient.flatten())
    for row, index in enumerate(batch.indices.tolist()):
        expected_momentum[index] = gradient[row] / norm + 0.3 * momentum[index]
        moved = reference_clip(delta0[row] + EPSILON * expected_momentum[index].sign(), -EPSILON, EPSILON)
        expected_prior[index] = reference_clip(batch.images[row] + moved, 0, 1) - batch.images[row]
    torch.testing.assert_close(method._gradient, expected_momentum, rtol=0, atol=1e-12)  # type: ignore[attr-defined]
    torch.testing.assert_close(method._prior, expected_prior, rtol=0, atol=1e-12)  # type: ignore[attr-defined]


def test_mep_memory_is_reset_every_reset_every_epochs() -> None:
    method = make_method("fgsm-mep", {"reset-every": 3}, epsilon=EPSILON, seed=1)
    where = torch.device("cpu")
    method.begin_epoch(0, 4, (1, 2, 2), where)
    method._gradient += 1  # type: ignore[attr-defined]
    first = method._prior.clone()  # type: ignore[attr-defined]
    method.begin_epoch(1, 4, (1, 2, 2), where)
    assert method._gradient.sum() == 16  # type: ignore[attr-defined]
    method.begin_epoch(3, 4, (1, 2, 2), where)
    assert method._gradient.sum() == 0  # type: ignore[attr-defined]
    assert not torch.equal(method._prior, first)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", METHODS)
def test_perturbation_stays_in_the_ball_and_the_range(name: str, model: Tiny, batch: Batch) -> None:
    perturbed = make(name).perturb(model, batch, keep_graph=False)
    assert (perturbed.images - batch.images).abs().max() <= EPSILON + 1e-12
    assert perturbed.images.min() >= 0
    assert perturbed.images.max() <= 1
    assert (perturbed.start_logits is None) == (METHODS.entry(name).facts["passes"] == 1)


def test_step_size_replaces_the_default() -> None:
    assert make("fgsm-rs").alpha == pytest.approx(1.25 * EPSILON)
    assert make("fgsm-rs", step_size=0.01).alpha == 0.01


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fgsm-mepp", {}, "unknown training method 'fgsm-mepp'; did you mean fgsm-mep"),
        ("fgsm", {"momentum": 1}, "method fgsm has no option 'momentum'; its options: none"),
        ("fgsm-mep", {"label-factor": "x"}, "option label_factor of method fgsm-mep takes a number, not 'x'"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as raised:
        make_method(name, options, epsilon=EPSILON)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("entry", METHODS.entries(), ids=lambda entry: entry.name)
def test_every_method_says_what_it_is(entry: object) -> None:
    assert entry.summary  # type: ignore[attr-defined]
    assert entry.source  # type: ignore[attr-defined]
    assert entry.value.__doc__  # type: ignore[attr-defined]
