"""The parts of the loss that go with any method: whole updates equal slow, literal references (float64)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from coprobe.core.randomness import ImageRandomness, generator_for
from coprobe.data import Batch, Dataset
from coprobe.nodes import record
from coprobe.training.regularizers import ChannelDivergence, FeatureStability, LogitStability, Regularizer
from coprobe.training.update import TrainingContext
from tests.training.references import REFERENCES
from tests.training.references.common import (
    CLASSES,
    EPSILON,
    SEED,
    SHAPE,
    At,
    Literal,
    Tiny,
    attack_gradient,
    clip,
    context,
    draw_uniform,
    make,
    make_batch,
    soft_cross_entropy,
    tiny,
    update,
)
from tests.training.updates import assert_same_state, literal_update, loop_for, one_update

AT = At(1, 0)
#: The mass of the true class in the loss of each method that the terms are tried on.
FACTORS = {"fgsm": 1.0, "fgsm-mep": 0.6}


def divergence(channels: Sequence[int], node: str = "relu", weight: float = 3.0) -> ChannelDivergence:
    """L_co with these channels."""
    term = ChannelDivergence(node, weight, percent=10, by="t-act", each_epoch=False, images=8, epsilon=EPSILON, seed=0)
    term.load({"channels": list(channels)})
    return term


def assert_update(
    method: str, terms: list[Regularizer], loss_of: Callable[[Tiny, Batch], Tensor], **knobs: Any
) -> None:
    """An update with these terms equals one that lowers `loss_of`, which makes the same passes in the same order."""
    model, batch = tiny(), make_batch()
    slow = copy.deepcopy(model)
    literal_update(slow, loss_of(slow, batch))
    one_update(loop_for(model, make(method, epoch=AT.epoch), terms, **knobs), batch, AT)
    assert_same_state(model, slow)


def reference(name: str, model: Tiny, batch: Batch) -> tuple[Literal, Tensor, Tensor]:
    """The method's own part, and features and logits of its pass at x + δ0."""
    literal = REFERENCES[name](model, batch, make(name, epoch=AT.epoch), AT)
    assert literal.start_features is not None
    assert literal.start_logits is not None
    return literal, literal.start_features, literal.start_logits


def masked_loss(model: Tiny, images: Tensor, labels: Tensor, channels: Sequence[int], factor: float) -> Tensor:
    """A pass of its own in which the features of these channels count nothing."""
    features = model.features(images)
    kept = torch.ones_like(features)
    for channel in channels:
        kept[:, channel] = 0
    return soft_cross_entropy(model.linear((features * kept).flatten(1)), labels, factor)


def difference(final: Tensor, start: Tensor, channels: Sequence[int]) -> Tensor:
    """Mean over images of Σ_{k ∈ channels} ‖·‖² / (N · H · W)."""
    total = torch.zeros((), dtype=final.dtype)
    for one, other in zip(final, start, strict=True):
        for k in channels:
            total = total + ((one[k] - other[k]) ** 2).sum() / one.numel()
    return total / len(final)


# L_stable (Eq. 8)


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("method", FACTORS)
def test_l_stable_lowers_the_feature_difference(method: str, detach: bool) -> None:
    def loss(slow: Tiny, batch: Batch) -> Tensor:
        literal, start, _ = reference(method, slow, batch)
        return literal.loss + 20 * difference(literal.features, start.detach() if detach else start, range(3))

    assert_update(method, [FeatureStability("relu", 20.0, detach)], loss)


# L_co (Eq. 9)


@pytest.mark.parametrize("channels", [[1], [0, 2]])
@pytest.mark.parametrize("method", FACTORS)
def test_l_co_adds_the_masked_loss_and_raises_the_difference(method: str, channels: list[int]) -> None:
    def loss(slow: Tiny, batch: Batch) -> Tensor:
        literal, start, _ = reference(method, slow, batch)
        masked = masked_loss(slow, literal.images, batch.labels, channels, FACTORS[method])
        return literal.loss + masked - 3 * difference(literal.features, start, channels)

    assert_update(method, [divergence(channels)], loss)


def test_the_masked_pass_comes_last() -> None:
    """Masked before batch norm, the pass leaves other running statistics than the update's, so that order shows."""

    def loss(slow: Tiny, batch: Batch) -> Tensor:
        literal, _, _ = reference("fgsm", slow, batch)
        before, after = slow.conv(batch.images), slow.conv(literal.images)
        kept = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).view(1, 3, 1, 1)
        logits = slow.linear(slow.relu(slow.bn(after * kept)).flatten(1))
        masked = soft_cross_entropy(logits, batch.labels)
        return literal.loss + masked - 3 * difference(after, before, [1, 2])

    assert_update("fgsm", [divergence([1, 2], "conv")], loss)


def test_all_terms_together_are_the_sum_of_their_parts() -> None:
    def loss(slow: Tiny, batch: Batch) -> Tensor:
        literal, start, start_logits = reference("fgsm-mep", slow, batch)
        masked = masked_loss(slow, literal.images, batch.labels, [2], 0.6)
        stable = difference(literal.features, start, range(3))
        logit = sum((a - b) ** 2 for a, b in zip(literal.logits.flatten(), start_logits.flatten(), strict=True)) / (
            6 * CLASSES
        )
        return literal.loss + 20 * stable + 10 * logit + masked - 3 * difference(literal.features, start, [2])

    assert_update("fgsm-mep", [FeatureStability("relu", 20.0), LogitStability(10.0), divergence([2])], loss)


def test_the_unweighted_parts_are_measured() -> None:
    model, batch = tiny(), make_batch()
    slow = copy.deepcopy(model)
    terms = [FeatureStability("relu", 20.0), LogitStability(10.0), divergence([0, 1])]
    with record(model, ["relu"]) as recorded:
        loop = loop_for(model, make("fgsm"), terms)
        update = loop.state_of(batch, 0, recorded)
        loop.objective(update)
    literal = REFERENCES["fgsm"](slow, batch, make("fgsm"), At())
    assert literal.start_features is not None
    assert literal.start_logits is not None
    expected = {
        "stable": difference(literal.features, literal.start_features, range(3)),
        "logit": (literal.logits - literal.start_logits).square().mean(),
        "co_masked_loss": masked_loss(slow, literal.images, batch.labels, [0, 1], 1.0),
        "co_difference": difference(literal.features, literal.start_features, [0, 1]),
    }
    assert {name: float(value) for name, value in update.measured.items()} == pytest.approx(
        {name: float(value.detach()) for name, value in expected.items()}, rel=0, abs=1e-8
    )
    assert not any(value.requires_grad for value in update.measured.values())


# C_p% of Eq. 9: which channels, and when they are chosen


class TenChannels(Tiny):
    """Ten channels; takes float32 images, as attacks and statistics give them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 10, 3, padding=1)
        self.bn = nn.BatchNorm2d(10)
        self.linear = nn.Linear(10 * 4 * 5, CLASSES)
        self.double()

    def features(self, x: Tensor) -> Tensor:
        return super().features(x.double())

    @torch.no_grad()
    def rotate(self) -> None:
        """The same function, in which channel k has become channel k + 1."""
        self.linear.weight.copy_(self.linear.weight.view(CLASSES, 10, 20).roll(1, 1).flatten(1))
        for module in (self.conv, self.bn):
            for name, value in module.state_dict().items():
                if name != "num_batches_tracked":
                    value.copy_(value.roll(1, 0))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """25 images, the classes one after the other."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (25, *SHAPE), generator=generator, dtype=torch.uint8)
    return Dataset(images, torch.arange(CLASSES).repeat_interleave(5), tuple("abcde"), "made", "train")


@pytest.fixture(scope="module")
def where(dataset: Dataset) -> TrainingContext:
    return replace(context(), dataset=dataset)


@pytest.fixture(scope="module")
def trained(dataset: Dataset) -> TenChannels:
    """Classifies most of the images correctly, so that they are attacked; running statistics of its own.

    With this seed, other steps, images, or activations than those that count would choose other channels.
    """
    torch.manual_seed(4)
    model = TenChannels().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(8):
        optimizer.zero_grad()
        cross_entropy(model(dataset.images / 255), dataset.labels).backward()
        optimizer.step()
    return model


def chosen(model: nn.Module, where: TrainingContext, **given: Any) -> tuple[int, ...]:
    term = selecting(**given)
    term.begin_epoch(0, model, where)
    return term.channels


def selecting(percent: float = 30, by: str = "t-act", each_epoch: bool = True) -> ChannelDivergence:
    return ChannelDivergence("relu", 1.0, percent, by, each_epoch, images=10, epsilon=EPSILON, seed=2)


def literal_pgd10(model: TenChannels, image: Tensor, label: Tensor, noise: Tensor) -> Tensor:
    """Ten steps of 2/255 from a random start, as long as the image is classified correctly; all in float64."""
    low, high = image - EPSILON, image + EPSILON
    attacked = clip(clip(image + EPSILON * noise, low, high), 0, 1)
    for _ in range(10):
        attacked.requires_grad_()
        logits = model(attacked[None])
        if logits[0].argmax() != label:
            break
        (gradient,) = torch.autograd.grad(soft_cross_entropy(logits, label[None]), attacked)
        attacked = clip(clip(attacked.detach() + 2 / 255 * gradient.sign(), low, high), 0, 1)
    return attacked.detach()


def literal_scores(model: TenChannels, dataset: Dataset) -> dict[str, list[float]]:
    """T_act (Eq. 6) and the variance at x + δ, per channel, of the first two images of each class."""
    model = copy.deepcopy(model).eval()
    first_two = [5 * label + place for label in range(CLASSES) for place in range(2)]
    draws = 2 * ImageRandomness(2, "attack", torch.arange(10)).uniform(SHAPE, 0) - 1
    squares, at_delta = torch.zeros(10, dtype=torch.float64), []
    for index, draw in zip(first_two, draws, strict=True):
        image = dataset.images[index].double() / 255
        attacked = literal_pgd10(model, image, dataset.labels[index], draw.double())
        with torch.no_grad():
            clean, adversarial = model.features(image[None])[0], model.features(attacked[None])[0]
        for k in range(10):
            squares[k] += ((clean[k] - adversarial[k]) ** 2).sum() / (10 * 4 * 5)
        at_delta.append(adversarial)
    maps = torch.stack(at_delta)
    variances = [float(((maps[:, k] - maps[:, k].mean()) ** 2).mean()) for k in range(10)]
    return {"t-act": torch.tanh(100 * squares / 10).tolist(), "variance": variances}


def largest(scores: list[float], count: int) -> tuple[int, ...]:
    return tuple(sorted(sorted(range(10), key=lambda k: -scores[k])[:count]))


@pytest.mark.parametrize("by", ["t-act", "variance"])
def test_the_channels_are_the_largest_of_a_literal_computation(
    by: str, trained: TenChannels, where: TrainingContext, dataset: Dataset
) -> None:
    scores = literal_scores(trained, dataset)
    before = copy.deepcopy(trained.state_dict())
    for count in range(1, 10):
        assert chosen(trained, where, percent=10 * count, by=by) == largest(scores[by], count)
    assert largest(scores["t-act"], 3) != largest(scores["variance"], 3)
    assert max(scores["t-act"]) < 1  # where tanh saturates, this reference could not rank
    assert all(module.training for module in trained.modules())
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())


@pytest.mark.parametrize(("percent", "count"), [(1, 1), (3, 1), (14, 1), (16, 2), (20, 2), (34, 3), (100, 10)])
def test_p_percent_are_rounded_but_at_least_one(
    percent: float, count: int, trained: TenChannels, where: TrainingContext
) -> None:
    assert len(chosen(trained, where, percent=percent)) == count


@pytest.mark.parametrize("each_epoch", [True, False])
def test_channels_are_chosen_anew_each_epoch_or_once(
    each_epoch: bool, trained: TenChannels, where: TrainingContext
) -> None:
    model = copy.deepcopy(trained)
    term = selecting(each_epoch=each_epoch)
    term.begin_epoch(0, model, where)
    first = term.channels
    model.rotate()
    term.begin_epoch(1, model, where)
    rotated = tuple(sorted((k + 1) % 10 for k in first))
    assert first != rotated
    assert term.channels == (rotated if each_epoch else first)
    other = selecting(each_epoch=each_epoch)
    other.load(term.state())
    assert other.channels == term.channels


# Noise (Eqs. 11 and 12)


def noise_of(purpose: str, batch: Batch) -> Tensor:
    """What the update draws for this purpose."""
    return EPSILON * draw_uniform(generator_for(SEED, purpose, *AT), batch)


def literal_fgsm(slow: Tiny, batch: Batch) -> tuple[Tensor, Tensor]:
    """FGSM's x + δ, and the features of its pass at x; no pass of the update."""
    gradient, features, _ = attack_gradient(slow, batch.images, batch.labels)
    return clip(batch.images + EPSILON * gradient.sign(), 0, 1), features


def test_equation_11_is_the_loss_at_uniform_noise() -> None:
    def loss(slow: Tiny, batch: Batch) -> Tensor:
        return update(slow, batch.images + noise_of("perturbation", batch), batch).loss

    assert_update("noise", [], loss)


def test_equation_12_adds_noise_to_the_perturbed_images_without_a_clamp() -> None:
    def loss(slow: Tiny, batch: Batch) -> Tensor:
        images, start = literal_fgsm(slow, batch)
        images = images + noise_of("noise", batch)
        assert images.min() < -0.01
        assert images.max() > 1.01
        literal = update(slow, images, batch)
        return literal.loss + 20 * difference(literal.features, start, range(3))

    assert_update("fgsm", [FeatureStability("relu", 20.0)], loss, noise="added")


def test_both_is_the_mean_of_two_losses_in_two_passes_and_the_terms_look_at_the_last() -> None:
    def loss(slow: Tiny, batch: Batch) -> Tensor:
        images, start = literal_fgsm(slow, batch)
        noise = noise_of("noise", batch)
        eleven = update(slow, batch.images + noise, batch).loss
        twelve = update(slow, images + noise, batch)
        masked = masked_loss(slow, images + noise, batch.labels, [1], 1.0)
        stable = difference(twelve.features, start, range(3))
        return (eleven + twelve.loss) / 2 + 20 * stable + masked - 3 * difference(twelve.features, start, [1])

    assert_update("fgsm", [FeatureStability("relu", 20.0), divergence([1])], loss, noise="both")


def test_noise_is_fresh_in_every_update() -> None:
    batch = make_batch()
    loop = loop_for(tiny(), make("clean"), noise="added")
    noises = []
    for loop.epoch, loop.number in ((0, 0), (0, 1), (1, 0)):
        _, final, _ = loop.objective(loop.state_of(batch, loop.number, {}))
        noises.append(final.images - batch.images)
    assert all(0.9 * EPSILON < noise.abs().max() <= EPSILON + 1e-9 for noise in noises)
    assert not any(torch.equal(noises[0], noise) for noise in noises[1:])
    assert not torch.equal(noises[1], noises[2])
