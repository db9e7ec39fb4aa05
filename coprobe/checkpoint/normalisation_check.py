"""The normalisation check: which one a network expects, tried on clean images, since files of weights seldom say it.

Tried together with it: what names and shapes of weights leave open in the network itself (`Checkpoint.undecided`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coprobe.checkpoint.checkpoint import Checkpoint
from coprobe.checkpoint.normalisation import Normalisation
from coprobe.core.engine import BatchSize, Progress, frozen, in_batches, silent
from coprobe.data import Dataset, balanced_prefix, unit_floats
from coprobe.models import Classifier
from coprobe.models.classifier import usable

#: Clean images to try on; more would tell no more about mistakes as large as these.
IMAGES = 256
#: Where there are many readings, so many are tried on so few images first, and the best of them on all.
_FEW_FIRST, _FINALISTS = 32, 4

#: Mean and standard deviation per channel over all pixels of the training images, as public training code has them.
PUBLISHED = {
    "CIFAR-10's": (10, (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "CIFAR-100's": (100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "SVHN's": (10, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
}
#: Of ImageNet's training images, as torchvision's and timm's pretrained models have them.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
#: How far the constants of a few hundred images are at most from those of the whole data set (twice what was seen).
_NEAR = 0.02
#: Differences of up to so many standard errors are nothing to go by.
_ERRORS = 3
#: What a loss that is not finite counts as.
_WORST_LOSS = 1e4


def converged(clean: float, classes: int) -> bool:
    """Whether a final clean accuracy (a fraction) is above 1.5 times that of guessing."""
    return clean > 1.5 / classes


@dataclass(frozen=True, eq=False)
class Score:
    """How well a reading of a checkpoint does.

    Attributes:
        normalisation: that was tried.
        correct: which images are right (bool).
        losses: each one's cross-entropy.
        variant: arguments of the architecture that were tried instead of those assumed.
    """

    normalisation: Normalisation
    correct: Tensor = field(repr=False)
    losses: Tensor = field(repr=False)
    variant: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What was tried, in words."""
        return " and ".join([*_assigned(self.variant), self.normalisation.name])

    @property
    def options(self) -> str:
        """How to ask for it on the command line."""
        return " and ".join([*(f"pass --arch-arg {a}" for a in _assigned(self.variant)), self.normalisation.options])

    @property
    def accuracy(self) -> float:
        """A fraction."""
        return float(self.correct.double().mean())

    @property
    def cross_entropy(self) -> float:
        """The mean, in nats."""
        return float(self.losses.mean())

    def is_clearly_below(self, other: Score) -> bool:
        """Whether its accuracy is lower by more than 3 standard errors of the paired difference (McNemar)."""
        difference = other.correct.double() - self.correct.double()
        return bool(difference.sum() > _ERRORS * difference.square().sum().sqrt())

    def is_clearly_worse(self, other: Score) -> bool:
        """Whether its accuracy is clearly lower or, of another network, lower by one error with a clearly higher loss.

        Normalisations that are near each other differ in how sure the network is, so there accuracy alone counts.
        """
        if self.is_clearly_below(other) or self.variant == other.variant:
            return self.is_clearly_below(other)
        difference = other.correct.double() - self.correct.double()
        return bool(difference.sum() > difference.square().sum().sqrt()) and self._has_more_loss(other)

    def _has_more_loss(self, other: Score) -> bool:
        excess = self.losses - other.losses
        return bool(excess.mean() > _ERRORS * excess.std() / len(excess) ** 0.5)

    def is_about(self, best: Score) -> bool:
        """Whether the images can't tell it from a better one, neither by accuracy nor by cross-entropy."""
        return not (self.is_clearly_below(best) or self._has_more_loss(best))


@dataclass(frozen=True, eq=False)
class NormalisationCheck:
    """Which normalisation fits, and which of the networks that the weights may belong to.

    Attributes:
        scores: one per reading that was tried on all images.
        loaded: that of the checkpoint as it is, one of `scores`.
        num_classes: of the images.
    """

    scores: tuple[Score, ...]
    loaded: Score
    num_classes: int

    @cached_property
    def best(self) -> Score:
        """The least cross-entropy among those whose accuracy is not clearly below the highest."""
        highest = max(self.scores, key=lambda score: score.accuracy)
        return min(
            (score for score in self.scores if not score.is_clearly_below(highest)),
            key=lambda score: score.cross_entropy,
        )

    @property
    def alike(self) -> list[Score]:
        """Those that fit about as well as the best, which is not among them."""
        return [score for score in self.scores if score is not self.best and score.is_about(self.best)]

    @property
    def any_fits(self) -> bool:
        """Whether the best is better than guessing."""
        return converged(self.best.accuracy, self.num_classes)

    @property
    def better(self) -> Score | None:
        """The best, if the checkpoint as it is is clearly worse."""
        return self.best if self.any_fits and self.loaded.is_clearly_worse(self.best) else None

    def warning(self, known_from: str) -> str:
        """What is wrong with the checkpoint's own normalisation, and the remedy; empty if nothing is.

        Args:
            known_from: who says how images are normalised (`Checkpoint.normalised_by`).
        """
        better = self.better
        if better is None:
            return ""
        now = f"normalised by {known_from}" if self.loaded.normalisation.mean else "without normalisation"
        return (
            f"{now} it is right on {self.loaded.accuracy:.1%} of {len(better.correct)} clean images, "
            f"with {better.name} on {better.accuracy:.1%}; {better.options}"
        )

    @property
    def is_open(self) -> bool:
        """Whether it can't even be told if images are normalised at all."""
        alike = [score for score in self.alike if score.variant == self.best.variant]
        return len({score.normalisation.mean is None for score in (self.best, *alike)}) > 1

    @property
    def sentence(self) -> str:
        """The result for people, with what it rests on."""
        best, n = self.best, len(self.best.correct)
        if not self.any_fits:
            highest = max(score.accuracy for score in self.scores)
            return (
                f"no normalisation fits (at most {highest:.1%} of {n} images are right): the model may take pixels "
                "from 0 to 255, channels as BGR, other images, or the classes in another order"
            )
        others = " and ".join(score.name for score in self.alike)
        right = f"{best.accuracy:.1%} of {n} images are right"
        if self.is_open:
            return f"can't be told: {best.name} and {others} fit about equally ({right})"
        said = f"{best.name} fits best ({right}, cross-entropy {best.cross_entropy:.2f})"
        return f"{said}; {others} about equally" if others else said


def check_normalisation(
    checkpoint: Checkpoint,
    dataset: Dataset,
    *,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    progress: Progress = silent,
) -> NormalisationCheck:
    """Try none, the data set's own constants, ImageNet's, [-1, 1] and the checkpoint's on up to 256 clean images.

    Where names and shapes leave something of the network open (`Checkpoint.undecided`), each is tried with one argument
    of another value, too: all on 32 images, then the best on all.

    The checkpoint's model stays as it is, but for its network's device.

    Args:
        checkpoint: whose network is tried.
        dataset: images with true labels; the first of each class are taken.
        device: where to work.
        batch_size: images at once; None finds one that fits.
        progress: shows how far it is.

    Raises:
        InputError: the images don't fit the model (classes, channels, size).
    """
    sample = _sample(checkpoint, dataset)
    model = checkpoint.model
    loaded = Normalisation("as loaded", model.mean, model.std)
    candidates = _candidates(sample)
    same = next((n for n in candidates if _equal(n, loaded)), None)
    if same is None:
        candidates.append(loaded)
    own = same or loaded
    variants = _variants(checkpoint, min(sample.image_shape[1:]))
    networks = [checkpoint.variant(variant).model.network if variant else model.network for variant in variants]
    readings = [(number, candidate) for number in range(len(variants)) for candidate in candidates]
    few = sample.subset(balanced_prefix(sample.labels, _FEW_FIRST)) if len(variants) > 1 else sample
    finalists = len(candidates) if len(variants) == 1 else _FINALISTS + 2

    def score(reading: tuple[int, Normalisation], images: Dataset) -> Score:
        number, candidate = reading
        result = _score(networks[number], images, candidate, device, batch_size=batch_size, advance=advance)
        return replace(result, variant=variants[number])

    total = len(few) * len(readings) * (len(variants) > 1) + len(sample) * finalists
    with progress("normalisations", total) as advance:
        if len(variants) > 1:
            first = {reading: score(reading, few).cross_entropy for reading in readings}
            ranked = sorted(readings, key=first.__getitem__)
            same_normalisation = [reading for reading in ranked if reading[1] is own][:2]
            kept = {*ranked[:_FINALISTS], *same_normalisation, (0, own)}
            readings = [reading for reading in readings if reading in kept]
        scores = tuple(score(reading, sample) for reading in readings)
    return NormalisationCheck(scores, scores[readings.index((0, own))], dataset.num_classes)


def _variants(checkpoint: Checkpoint, side: int) -> list[dict[str, Any]]:
    """None, then each undecided argument with each value that is not assumed, as far as images are large enough."""
    assumed = checkpoint.whole_arch_args
    others = [
        {name: value} for name, values in checkpoint.undecided.items() for value in values if value != assumed[name]
    ]
    return [{}, *(variant for variant in others if checkpoint.variant(variant).min_image_size <= side)]


def _assigned(arguments: Mapping[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, value in arguments.items()]


def _sample(checkpoint: Checkpoint, dataset: Dataset) -> Dataset:
    checkpoint.check_fit(f"{dataset.name} ({dataset.split})", dataset.num_classes, dataset.image_shape)
    return dataset.subset(balanced_prefix(dataset.labels, IMAGES))


def _candidates(sample: Dataset) -> list[Normalisation]:
    channels = sample.image_shape[0]
    found = [Normalisation("none"), _own(sample)]
    if channels == 3:
        found.append(Normalisation("ImageNet's", *_IMAGENET))
    return [*found, Normalisation("[-1, 1]", (0.5,) * channels, (0.5,) * channels)]


def _own(sample: Dataset) -> Normalisation:
    """The published constants of a data set whose images these can be, else those of the images themselves."""
    largest = 255 if sample.images.dtype == torch.uint8 else 1
    pixels = sample.images.double().transpose(0, 1).flatten(1) / largest
    own = torch.stack([pixels.mean(1), pixels.std(1).clamp(min=0.01)])  # a channel may be empty
    for name, (classes, mean, std) in PUBLISHED.items():
        if classes == sample.num_classes and len(pixels) == 3 and (torch.tensor([mean, std]) - own).abs().max() < _NEAR:
            return Normalisation(name, mean, std)
    means, deviations = (tuple(round(number, 4) for number in numbers) for numbers in own.tolist())
    return Normalisation("the images' own", means, deviations)


def _equal(one: Normalisation, other: Normalisation) -> bool:
    """Whether they differ by no more than the rounding of published constants."""

    def numbers(normalisation: Normalisation) -> Sequence[float]:
        channels = len(one.mean or other.mean or ())
        return [*(normalisation.mean or (0.0,) * channels), *(normalisation.std or (1.0,) * channels)]

    return all(abs(a - b) < 1e-3 for a, b in zip(numbers(one), numbers(other), strict=True))


def _score(
    network: nn.Module,
    sample: Dataset,
    normalisation: Normalisation,
    device: torch.device | str,
    *,
    batch_size: int | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> Score:
    model = Classifier(network, normalisation.mean, normalisation.std).to(device)

    def work(start: int, stop: int) -> tuple[Tensor, Tensor]:
        images, labels = (part[start:stop].to(device) for part in (sample.images, sample.labels))
        logits = model(unit_floats(images)).double()
        losses = F.cross_entropy(logits, labels, reduction="none").nan_to_num(nan=_WORST_LOSS)
        correct = (logits.argmax(1) == labels) & usable(logits)
        advance(stop - start)
        return correct.cpu(), losses.clamp(max=_WORST_LOSS).cpu()

    with frozen(model), torch.no_grad():
        parts = list(in_batches(len(sample), work, BatchSize(batch_size, device)))
    correct, losses = (torch.cat(column) for column in zip(*parts, strict=True))
    return Score(normalisation, correct, losses)
