from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from coprobe.attacks import AdversarialExamples, Attack, parse
from coprobe.attacks.examples import CLEAN
from coprobe.data import Dataset
from coprobe.evaluation import Noise, evaluate
from tests.attacks.small import convolutional

EPSILON = 16 / 255


def dataset(count: int = 7) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(64, 192, (count, 3, 4, 5), generator=generator, dtype=torch.uint8)
    return Dataset(images, torch.arange(count) % 4, tuple("abcd"), "made up", "test")


def model() -> nn.Module:
    return convolutional((3, 4, 5), 4)


@dataclass(frozen=True, kw_only=True)
class Counting(Attack):
    """Counts its calls and moves nothing."""

    name: ClassVar[str] = "counting"
    title: ClassVar[str] = "Counting"
    calls: ClassVar[list[int]] = []

    def run(self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        self.calls.append(len(x))
        return x


@pytest.fixture(autouse=True)
def _no_calls_yet() -> Iterator[None]:
    Counting.calls.clear()
    yield
    Counting.calls.clear()


def test_batches_cover_the_data_set_in_order() -> None:
    data = dataset()
    batches = list(AdversarialExamples(model(), data, [parse("fgsm", EPSILON)], batch_size=3))
    assert [batch.start for batch in batches] == [0, 3, 6]
    assert torch.equal(torch.cat([batch.images[CLEAN] for batch in batches]), data.images / 255)
    assert torch.equal(torch.cat([batch.labels for batch in batches]), data.labels)
    assert all(list(batch.images) == [CLEAN, "fgsm"] for batch in batches)


def test_images_are_those_of_the_attack_whatever_else_was_crafted() -> None:
    network, data = model(), dataset()
    attacks = [parse(spec, EPSILON) for spec in ("fgsm", "pgd:3")]
    both = [batch.images["pgd:3"] for batch in AdversarialExamples(network, data, attacks, batch_size=3)]
    alone = [batch.images["pgd:3"] for batch in AdversarialExamples(network, data, attacks[1:], batch_size=3)]
    other = [batch.images["pgd:3"] for batch in AdversarialExamples(network, data, attacks, batch_size=3, seed=1)]
    assert all(torch.equal(a, b) for a, b in zip(both, alone, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(both, other, strict=True))


def test_random_starts_differ_between_batches() -> None:
    same = Dataset(torch.full((4, 3, 4, 5), 128, dtype=torch.uint8), torch.zeros(4).long(), ("a", "b"), "grey", "test")
    flat = nn.Sequential(nn.Flatten(), nn.Linear(60, 4))
    nn.init.zeros_(flat[1].weight)
    attack = [parse("pgd:1:rule=always", EPSILON)]  # no gradient, so only the start is left
    first, second = (b.images["pgd:1:rule=always"] for b in AdversarialExamples(flat, same, attack, batch_size=2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("keep", [False, True])
def test_second_pass_gives_the_same_and_crafts_again_only_without_keep(keep: bool) -> None:
    examples = AdversarialExamples(
        model(), dataset(), [parse("pgd:2", EPSILON), Counting(epsilon=EPSILON)], batch_size=3, keep=keep
    )
    first, second = list(examples), list(examples)
    assert Counting.calls == ([3, 3, 1] if keep else [3, 3, 1] * 2)
    for a, b in zip(first, second, strict=True):
        assert a.start == b.start and torch.equal(a.labels, b.labels) and a.images.keys() == b.images.keys()
        assert all(torch.equal(a.images[spec], b.images[spec]) for spec in a.images)


def test_pass_that_was_left_is_not_kept() -> None:
    examples = AdversarialExamples(model(), dataset(), [Counting(epsilon=EPSILON)], batch_size=3, keep=True)
    next(iter(examples))
    assert [batch.start for batch in examples] == [0, 3, 6]


def test_progress_counts_the_images_of_crafting_passes_only() -> None:
    done: list[int] = []
    examples = AdversarialExamples(model(), dataset(), [], batch_size=3, keep=True, progress=done.append)
    list(examples), list(examples)
    assert done == [3, 3, 1]


def test_noise_of_the_evaluation_is_not_the_random_start_again() -> None:
    """Both come from one seed: images that keep their start must still meet noise of their own."""
    seen: list[Tensor] = []

    class Watching(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            return super().forward(x)

    flat = Watching(nn.Flatten(), nn.Linear(60, 4))
    nn.init.zeros_(flat[1].weight)
    data = dataset()
    examples = AdversarialExamples(flat, data, [parse("pgd:1", EPSILON)], batch_size=7, keep=True)
    (batch,) = examples
    start = batch.images["pgd:1"] - data.images / 255
    seen.clear()
    evaluate(flat, [batch], noises=[Noise("uniform", EPSILON)])
    noise = seen[0] - data.images / 255
    correlation = torch.corrcoef(torch.stack([start.flatten(), noise.flatten()]))[0, 1]
    assert noise.abs().max() > 0.9 * EPSILON and start.abs().max() > 0.9 * EPSILON
    assert abs(correlation) < 4 / start.numel() ** 0.5
