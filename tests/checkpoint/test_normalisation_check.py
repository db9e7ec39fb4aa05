"""Which normalisation a network was trained with is found, and what can't be told is not claimed."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from coprobe.checkpoint import Checkpoint
from coprobe.checkpoint.normalisation import Normalisation
from coprobe.checkpoint.normalisation_check import (
    PUBLISHED,
    NormalisationCheck,
    Score,
    check_normalisation,
)
from coprobe.data import Dataset
from coprobe.errors import InputError
from coprobe.models import Classifier
from tests import toys

CLASSES = 10
#: Per channel; far from the constants of photographs, so that four networks expect four different inputs.
GREY, SPREAD = torch.tensor([0.30, 0.25, 0.35]), 0.08
#: Of the logits, so that their softmax is neither flat nor certain of its mistakes.
SHARPNESS = 100.0


def colours(channels: int = 3) -> Tensor:
    """The mean colour of each class."""
    around = torch.rand(CLASSES, channels, generator=torch.Generator().manual_seed(0)) - 0.5
    return GREY[:channels] + 0.4 * around


def blobs(count: int, seed: int, *, classes: int = CLASSES, channels: int = 3) -> Dataset:
    """Noisy images of one colour each, by class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    noise = torch.randn(count, channels, 8, 8, generator=generator) * SPREAD
    images = (colours(channels)[labels][:, :, None, None] + noise).clamp(0, 1)
    return Dataset((images * 255).round().byte(), labels, tuple(map(str, range(classes))), "blobs", "test")


def network(channels: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm2d(channels), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)
    )  # fmt: skip


def expecting(mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> nn.Module:
    """A network that takes images normalised so: it undoes that, and the class of the nearest mean colour wins.

    -|x - c|² = 2 c·x - |c|² + const, where x = std · input + mean.
    """
    shift, scale = (torch.tensor(numbers or (neutral,) * 3) for numbers, neutral in ((mean, 0.0), (std, 1.0)))
    net = network().eval()
    assert isinstance(net[-1], nn.Linear)
    with torch.no_grad():
        net[-1].weight.copy_(SHARPNESS * 2 * colours() * scale)
        net[-1].bias.copy_(SHARPNESS * (2 * colours() @ shift - colours().square().sum(1)))
    return net


def own_constants() -> Normalisation:
    pixels = blobs(300, seed=3).images[:256].numpy() / 255
    mean, std = (tuple(numbers.round(4).tolist()) for numbers in (pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))))
    return Normalisation("the images' own", mean, std)


OWN = own_constants()
KNOWN = {
    "none": Normalisation("none"),
    "the images' own": OWN,
    "ImageNet's": Normalisation("ImageNet's", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "[-1, 1]": Normalisation("[-1, 1]", (0.5,) * 3, (0.5,) * 3),
}


@pytest.fixture(scope="session")
def networks() -> dict[str, nn.Module]:
    return {name: expecting(known.mean, known.std) for name, known in KNOWN.items()}


def loaded(net: nn.Module, known: Normalisation = KNOWN["none"]) -> Checkpoint:
    return replace(toys.checkpoint(net), model=Classifier(net, known.mean, known.std).eval())


@pytest.mark.parametrize("name", KNOWN)
def test_the_normalisation_that_a_network_expects_is_found(networks: dict[str, nn.Module], name: str) -> None:
    check = check_normalisation(loaded(networks[name]), blobs(300, seed=3))
    assert [score.normalisation.name for score in check.scores] == list(KNOWN)
    assert all(len(score.correct) == 256 for score in check.scores)
    assert check.best.normalisation.name == name and check.best.accuracy > 0.9
    assert check.loaded is check.scores[0] and not check.is_open
    assert check.sentence.startswith(f"{name} fits best ({check.best.accuracy:.1%} of 256 images are right")
    if name == "none":
        assert check.better is None and check.warning("") == ""
    else:
        assert check.better is check.best
        now, accuracies = check.loaded.accuracy, check.best.accuracy
        assert check.warning("") == (
            f"without normalisation it is right on {now:.1%} of 256 clean images, with {name} on {accuracies:.1%}; "
            f"{check.best.normalisation.options}"
        )


@pytest.mark.parametrize(("name", "given"), list(itertools.permutations(KNOWN, 2)))
def test_a_wrong_one_that_was_given_is_warned_about(networks: dict[str, nn.Module], name: str, given: str) -> None:
    check = check_normalisation(loaded(networks[name], KNOWN[given]), blobs(300, seed=3))
    assert check.loaded.normalisation.name == given
    said = check.warning("--mean/--std")
    assert said.endswith(KNOWN[name].options)
    assert said.startswith("without" if given == "none" else "normalised by --mean/--std it is")


def test_numbers_nobody_knows_are_tried_as_they_are_and_rounding_does_not_matter(
    networks: dict[str, nn.Module],
) -> None:
    odd = Normalisation("odd", (0.1, 0.2, 0.3), (0.7, 0.8, 0.9))
    check = check_normalisation(loaded(networks["none"], odd), blobs(100, seed=3))
    assert check.loaded is check.scores[4]
    assert check.loaded.normalisation == Normalisation("as loaded", odd.mean, odd.std)
    near = replace(KNOWN["ImageNet's"], mean=(0.4851, 0.456, 0.406))
    check = check_normalisation(loaded(networks["none"], near), blobs(100, seed=3))
    assert len(check.scores) == 4 and check.loaded.normalisation.name == "ImageNet's"
    idle = Normalisation("idle", (0.0,) * 3, (1.0,) * 3)
    assert check_normalisation(loaded(networks["none"], idle), blobs(100, seed=3)).loaded.normalisation.name == "none"


def test_the_model_is_left_as_it_is(networks: dict[str, nn.Module]) -> None:
    checkpoint = loaded(networks["none"], OWN)
    checkpoint.model.train()
    before = {name: value.clone() for name, value in checkpoint.model.state_dict().items()}
    flags = [p.requires_grad for p in checkpoint.model.parameters()]
    check_normalisation(checkpoint, blobs(40, seed=3))
    assert all(module.training for module in checkpoint.model.modules())
    checkpoint.model.eval()
    assert (checkpoint.model.mean, checkpoint.model.std) == (OWN.mean, OWN.std)
    assert all(torch.equal(value, before[name]) for name, value in checkpoint.model.state_dict().items())
    assert [p.requires_grad for p in checkpoint.model.parameters()] == flags


def test_a_network_that_knows_nothing_fits_nothing() -> None:
    check = check_normalisation(toys.checkpoint(Constant(0.0)), blobs(200, seed=3))
    assert {score.accuracy for score in check.scores} == {0.1} and not check.any_fits and check.better is None
    assert check.sentence.startswith("no normalisation fits (at most ") and "BGR" in check.sentence


def test_logits_that_are_not_finite_are_wrong() -> None:
    check = check_normalisation(toys.checkpoint(Constant(torch.nan)), blobs(20, seed=3))
    assert {score.accuracy for score in check.scores} == {0} and not check.any_fits
    assert {score.cross_entropy for score in check.scores} == {1e4}


class Constant(nn.Module):
    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = logit

    def forward(self, x: Tensor) -> Tensor:
        return torch.full((len(x), 100), self.logit)


def test_images_that_do_not_fit_are_refused(networks: dict[str, nn.Module]) -> None:
    with pytest.raises(InputError, match="has 4 classes and the model 10"):
        check_normalisation(loaded(networks["none"]), blobs(20, seed=3, classes=4))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_constants_of_the_data_set(name: str) -> None:
    """Of images whose own constants are near them, and only with as many classes."""
    classes, mean, std = PUBLISHED[name]
    generator = torch.Generator().manual_seed(0)
    pixels = (
        torch.tensor(mean)[:, None, None]
        + torch.tensor(std)[:, None, None] * (torch.rand(200, 3, 8, 8, generator=generator) - 0.5) * 12**0.5
    )
    images = (pixels.clamp(0, 1) * 255).byte()
    for given in (classes, 7):
        data = Dataset(images, torch.arange(200) % given, tuple(map(str, range(given))), "photos", "test")
        checkpoint = replace(toys.checkpoint(Constant(0.0)), arch_args={"num_classes": given, "in_channels": 3})
        own = check_normalisation(checkpoint, data).scores[1].normalisation
        assert (own == Normalisation(name, mean, std)) is (given == classes)
        torch.testing.assert_close(torch.tensor(own.mean), torch.tensor(mean), atol=0.02, rtol=0)


def test_grey_images_have_no_constants_of_imagenet() -> None:
    data = blobs(20, seed=3, channels=1)
    data = replace(data, images=torch.zeros_like(data.images))
    checkpoint = replace(toys.checkpoint(Constant(0.0)), arch_args={"num_classes": CLASSES, "in_channels": 1})
    scores = check_normalisation(checkpoint, data).scores
    assert [score.normalisation.name for score in scores] == ["none", "the images' own", "[-1, 1]"]
    assert scores[1].normalisation.std == (0.01,)


def score(correct: int, n: int = 100, loss: float = 1.0, name: str = "none") -> Score:
    """The first `correct` images are right."""
    mean = None if name == "none" else (0.5,)
    return Score(Normalisation(name, mean, mean), torch.arange(n) < correct, torch.full((n,), loss).double())


@pytest.mark.parametrize(("lower", "clearly"), [(91, False), (90, True), (89, True), (99, False)])
def test_ten_images_of_a_hundred_are_beyond_three_errors(lower: int, clearly: bool) -> None:
    """With b images lost and none won, the difference is b and its error √b: b > 9."""
    assert score(lower).is_clearly_below(score(100)) is clearly
    assert not score(100).is_clearly_below(score(lower))


def test_what_can_not_be_told_is_open() -> None:
    noise = torch.randn(100, generator=torch.Generator().manual_seed(0)).double()
    none, other = score(80, loss=0.5), score(79, loss=0.52, name="ImageNet's")
    other = replace(other, losses=other.losses + noise)
    check = NormalisationCheck((none, other), none, CLASSES)
    assert check.best is none and check.alike == [other] and check.is_open
    assert check.sentence == "can't be told: none and ImageNet's fit about equally (80.0% of 100 images are right)"
    two = replace(none, normalisation=Normalisation("CIFAR-10's", (0.5,), (0.5,)))
    check = NormalisationCheck((two, other), other, CLASSES)
    assert not check.is_open and check.better is None
    assert check.sentence.endswith("right, cross-entropy 0.50); ImageNet's about equally")


def test_confidence_alone_does_not_win() -> None:
    """Least cross-entropy, but clearly fewer right."""
    right, sure = score(90, loss=0.6), score(60, loss=0.4, name="[-1, 1]")
    assert NormalisationCheck((right, sure), sure, CLASSES).best is right
