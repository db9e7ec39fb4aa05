"""Several measurements on one pass: as each alone, nothing twice, in halves and in several processes."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from coprobe.attacks import AdversarialBatch, AdversarialExamples, StepAttack, parse
from coprobe.core.processes import Processes
from coprobe.data import Dataset
from coprobe.errors import RunError
from coprobe.metrics import (
    ChannelSums,
    IncrementSums,
    Measurement,
    Overlap,
    accumulator,
    channels,
    increments,
    survey,
)
from coprobe.metrics.accuracy import Accuracy, Noise
from coprobe.metrics.increments import Increments
from coprobe.nodes import NO_MASK, ChannelMask
from tests.metrics.threads import in_threads

EPSILON, SEED, NODES = 16 / 255, 7, ["1", "3"]
ALWAYS, UNTIL = "pgd:3:rule=always", "pgd:4"


class Watched(nn.Module):
    """Convolutions that count the images they are shown, and run out of memory above `room` where asked to."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 7, 3, stride=2), nn.ReLU(), nn.Flatten()]
        self.network = nn.Sequential(*layers, nn.Linear(7 * 3 * 2, 4))
        self.attacked, self.measured, self.failed = 0, 0, 0
        self.room = 10**6
        self.node_table = {name: f"network.{name}" for name in NODES}

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            self.attacked += len(x)
        else:
            self.measured += len(x)
            if len(x) > self.room:
                self.failed += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        logits: Tensor = self.network(x)
        return logits


@lru_cache
def dataset(count: int = 50) -> Dataset:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, 7, 5), generator=generator, dtype=torch.uint8)
    with torch.no_grad():
        labels = Watched()(images / 255).argmax(1)
    return Dataset(images, labels, tuple("abcd"), "random", "test")


def examples(model: nn.Module, *attacks: str, **settings: Any) -> AdversarialExamples:
    parsed = [parse(spec, EPSILON) for spec in attacks]
    return AdversarialExamples(model, dataset(), parsed, **{"batch_size": 16, "seed": SEED, **settings})


NOISES = (Noise(), Noise("gauss", 0.1), Noise("uniform", 0.2))
#: Every measurement there is, with the attack that it needs.
MEASURED: dict[str, tuple[str, Callable[[nn.Module], Measurement[Any]]]] = {
    "channels": (ALWAYS, lambda model: ChannelSums(model, NODES, ALWAYS)),
    "increments": (ALWAYS, lambda model: IncrementSums(model, NODES, parse(ALWAYS, EPSILON))),
    "overlap": (UNTIL, lambda model: Overlap(model, "3", UNTIL, top=2)),
    "accuracy": (
        UNTIL,
        lambda model: Accuracy(
            model, [UNTIL, "clean"], noises=NOISES, noise_draws=2, masks=[NO_MASK, ChannelMask({"1": (0, 3)}, "some")]
        ),
    ),
}


def frame(result: Any) -> pd.DataFrame:
    return result if isinstance(result, pd.DataFrame) else result.frame


def alone(name: str, **settings: Any) -> pd.DataFrame:
    attack, make = MEASURED[name]
    model = Watched()
    return frame(survey(examples(model, attack, **settings), [make(model)])[0])


@pytest.mark.parametrize("plain", [False, True])
def test_asking_together_is_asking_one_by_one(plain: bool) -> None:
    model = Watched()
    made = [make(model) for _, make in MEASURED.values()]
    together = survey(examples(model, ALWAYS, UNTIL, plain=plain), made)
    assert len(together) == len(MEASURED)
    for name, result in zip(MEASURED, together, strict=True):
        pd.testing.assert_frame_equal(frame(result), alone(name), check_exact=True)
    assert frame(together[3])["correct"].nunique() > 3


def test_nothing_is_attacked_twice() -> None:
    """Three questions about one attack, two of which need every step, cost the gradients of one attack."""
    counts = {}
    for count in (1, 3):
        model = Watched()
        attack = parse(ALWAYS, EPSILON)
        followers = [IncrementSums(model, nodes, attack) for nodes in (NODES, ["1"])]
        asked = [followers[0], ChannelSums(model, NODES, ALWAYS), followers[1]]
        survey(examples(model, ALWAYS), asked[:count])
        counts[count] = model.attacked
    assert counts[1] == counts[3] == 50 * 3


def test_the_last_increment_is_the_image_that_the_others_see() -> None:
    """Also of an attack whose images stop on the way."""
    model, seen = Watched(), []

    class Looking(Measurement[None]):
        state = None

        def update(self, batch: AdversarialBatch) -> None:
            seen.append(batch)

        def absorb(self, state: Any) -> None:
            raise AssertionError("there are no others")

        def result(self) -> None:
            return None

    attack = parse(UNTIL, EPSILON)
    assert isinstance(attack, StepAttack)
    moved, statistics, _ = survey(
        examples(model, UNTIL), [IncrementSums(model, NODES, attack), ChannelSums(model, NODES, UNTIL), Looking()]
    )
    for node in NODES:
        assert moved.s(node)[-1].tolist() == statistics.s(node).tolist()
    assert [len(batch.labels) for batch in seen] == [16, 16, 16, 2]
    images = dataset().images / 255
    *_, last = attack.steps(model, images, dataset().labels, seed=SEED)
    torch.testing.assert_close(torch.cat([batch.images[UNTIL] for batch in seen]), last, rtol=0, atol=1e-6)


@pytest.mark.parametrize("room", [1, 7, 20])
def test_memory_that_runs_out_while_measuring_counts_nothing_twice(room: int) -> None:
    model = Watched()
    model.room = room
    made = [make(model) for _, make in MEASURED.values()]
    together = survey(examples(model, ALWAYS, UNTIL, batch_size=None), made)
    assert 0 < model.failed < 12
    for name, result in zip(MEASURED, together, strict=True):
        expected = alone(name)
        pd.testing.assert_frame_equal(frame(result), expected, rtol=1e-5, atol=1e-5)
    assert set(frame(together[0])["images"]) == set(frame(together[1])["images"]) == {50}
    assert set(frame(together[3])["n"]) == {50}


@pytest.mark.parametrize(("name", "fails"), [("channels", 2), ("increments", 2), ("increments", 16)])
def test_memory_that_runs_out_at_the_second_node_has_not_counted_the_first(
    name: str, fails: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sums in float64 need memory of their own."""
    calls = [0]

    def short_of_memory(work: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def shortly(clean: Tensor, adversarial: Tensor) -> Tensor:
            calls[0] += 1
            if calls[0] == fails:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            return work(clean, adversarial)

        return shortly

    expected = alone(name)
    monkeypatch.setattr(accumulator, "image_sums", short_of_memory(accumulator.image_sums))
    monkeypatch.setattr(channels, "image_sums", short_of_memory(channels.image_sums))
    monkeypatch.setattr(increments, "differences_squared", short_of_memory(increments.differences_squared))
    found = alone(name, batch_size=None)
    assert calls[0] > fails
    pd.testing.assert_frame_equal(found, expected, rtol=1e-6, atol=1e-6)


def test_memory_that_runs_out_for_a_given_size_says_so() -> None:
    model = Watched()
    model.room = 10
    with pytest.raises(RunError, match="out of memory with 16 images at once; lower --batch-size"):
        survey(examples(model, ALWAYS), [ChannelSums(model, NODES, ALWAYS)])


def shared(name: str, count: int, unit: int = 1) -> list[pd.DataFrame]:
    """The results of all processes, each of which attacks and sees its own part of the images."""
    attack, make = MEASURED[name]

    models = [Watched() for _ in range(count)]  # here, since threads share the state of random numbers

    def work(processes: Processes) -> pd.DataFrame:
        model = models[processes.rank]
        crafted = examples(model, attack)
        crafted.stretch = processes.shard(50, unit)
        return frame(survey(crafted, [make(model)], processes)[0])

    return in_threads(count, work)


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize(("count", "unit"), [(2, 1), (3, 16), (5, 16)])
def test_several_processes_find_what_one_finds(name: str, count: int, unit: int) -> None:
    """Each of them; whole batches are the same to the last bit, and one of five has no images at all."""
    for found in shared(name, count, unit):
        if unit == 16:
            pd.testing.assert_frame_equal(found, alone(name), check_exact=True, check_like=True)
        else:
            pd.testing.assert_frame_equal(found, alone(name), rtol=1e-6, atol=1e-9, check_like=True)


def test_a_survey_of_the_same_examples_again_is_a_new_one() -> None:
    """Measurements that are done are not shown the steps of the next pass."""
    model, attack = Watched(), parse(ALWAYS, EPSILON)
    crafted = examples(model, ALWAYS)
    first, again = IncrementSums(model, NODES, attack), IncrementSums(model, NODES, attack)
    (one,) = survey(crafted, [first])
    cost = model.measured
    (two,) = survey(crafted, [again])
    assert isinstance(one, Increments) and isinstance(two, Increments)
    pd.testing.assert_frame_equal(one.frame, two.frame, check_exact=True)
    assert model.measured == 2 * cost
    pd.testing.assert_frame_equal(first.result().frame, one.frame, check_exact=True)


def test_batches_of_any_iterable_are_shown_as_they_are() -> None:
    model = Watched()
    batches = list(examples(model, ALWAYS))
    (found,) = survey(iter(batches), [ChannelSums(model, NODES, ALWAYS)])
    pd.testing.assert_frame_equal(found.frame, alone("channels"), check_exact=True)
    parts = [batches[0].part(0, 5), batches[0].part(5, 16), *batches[1:]]
    assert parts[1].start == 5 and parts[1].indices.tolist() == list(range(5, 16))
    (found,) = survey(parts, [ChannelSums(model, NODES, ALWAYS)])
    np.testing.assert_allclose(found.s("1"), channels.ChannelStatistics(alone("channels")).s("1"), rtol=1e-5)
