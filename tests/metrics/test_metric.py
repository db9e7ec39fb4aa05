"""Several metrics on one pass: as each alone, nothing twice, in halves and in several processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from coprobe.attacks import AdversarialExamples, parse
from coprobe.core.processes import Processes
from coprobe.data import Dataset
from coprobe.errors import RunError
from coprobe.metrics import (
    Accuracy,
    ActivationIncrements,
    ChannelActivations,
    ChannelOverlap,
    Metric,
    Noise,
    accumulator,
    channels,
    increments,
    measure,
)
from coprobe.metrics.attribution import Attribution
from coprobe.metrics.gradient_alignment import GradientAlignment
from coprobe.metrics.metric import METRICS, table_of
from coprobe.nodes import NO_MASK, ChannelMask
from tests.metrics.threads import in_threads

EPSILON, SEED, NODES = 16 / 255, 7, ("1", "3")
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
    followed = {spec for spec in attacks if spec in (ALWAYS, UNTIL)}
    return AdversarialExamples(
        model, dataset(), parsed, **{"batch_size": 16, "seed": SEED, "trajectories": followed, **settings}
    )


NOISES = (Noise(), Noise("gauss", 0.1), Noise("uniform", 0.2))
#: Metrics with the attack that they need; a new one gets its row.
MEASURED: dict[str, Metric[Any]] = {
    "channels": ChannelActivations(nodes=NODES, attack=ALWAYS),
    "increments": ActivationIncrements(nodes=NODES, attack=ALWAYS),
    "overlap": ChannelOverlap(node="3", attack=UNTIL, top=2),
    "accuracy": Accuracy(
        attacks=(UNTIL,), noises=NOISES, noise_draws=2, masks=(NO_MASK, ChannelMask({"1": (0, 3)}, "some"))
    ),
    "attribution": Attribution(node="3", attack=ALWAYS),
    "gradient-alignment": GradientAlignment(epsilon=EPSILON, seed=SEED),
}
CONVOLVING = {name: metric for name, metric in MEASURED.items() if name != "attribution"}


def fresh(name: str) -> Metric[Any]:
    return replace(MEASURED[name])


def alone(name: str, **settings: Any) -> pd.DataFrame:
    model, metric = Watched(), fresh(name)
    return table_of(metric.measure(model, examples(model, *metric.attacks, **settings)))


def test_every_metric_is_tested_here() -> None:
    tested = {type(metric) for metric in MEASURED.values()}
    assert tested == {entry.value for entry in METRICS.entries()}
    for entry in METRICS.entries():
        assert entry.summary and entry.source and entry.value.__doc__


@pytest.mark.parametrize("name", MEASURED)
def test_a_result_is_restored_from_its_table(name: str) -> None:
    model, metric = Watched(), fresh(name)
    result = metric.measure(model, examples(model, *metric.attacks))
    again = metric.restored(table_of(result))
    assert type(again) is type(result)
    pd.testing.assert_frame_equal(table_of(again), table_of(result), check_exact=True)
    assert json.loads(json.dumps(metric.settings)) is not None and not {"epsilon", "seed"} & metric.settings.keys()


@pytest.mark.parametrize("plain", [False, True])
def test_asking_together_is_asking_one_by_one(plain: bool) -> None:
    model = Watched()
    made = [fresh(name) for name in MEASURED]
    together = measure(examples(model, ALWAYS, UNTIL, plain=plain), made, [model] * len(made))
    assert len(together) == len(MEASURED)
    for name, result in zip(MEASURED, together, strict=True):
        pd.testing.assert_frame_equal(table_of(result), alone(name), check_exact=True)
    assert table_of(together[3])["correct"].nunique() > 3


def test_nothing_is_attacked_twice() -> None:
    """Three metrics of one attack, two of which need every step, cost the gradients of one attack."""
    counts = {}
    for count in (1, 3):
        model = Watched()
        followers = [ActivationIncrements(nodes=nodes, attack=ALWAYS) for nodes in (NODES, ("1",))]
        asked = [followers[0], ChannelActivations(nodes=NODES, attack=ALWAYS), followers[1]]
        measure(examples(model, ALWAYS), asked[:count], [model] * count)
        counts[count] = model.attacked
    assert counts[1] == counts[3] == 50 * 3


def test_the_last_increment_is_the_image_that_the_others_see() -> None:
    """Also of an attack whose images stop on the way."""
    model = Watched()
    batches = list(examples(model, UNTIL))
    moved = ActivationIncrements(nodes=NODES, attack=UNTIL).measure(model, batches)
    statistics = ChannelActivations(nodes=NODES, attack=UNTIL).measure(model, batches)
    for node in NODES:
        assert moved.s(node)[-1].tolist() == statistics.s(node).tolist()
    assert [len(batch.labels) for batch in batches] == [16, 16, 16, 2]


@pytest.mark.slow
@pytest.mark.parametrize("room", [1, 7, 20])
def test_memory_that_runs_out_while_measuring_counts_nothing_twice(room: int) -> None:
    model = Watched()
    model.room = room
    made = [fresh(name) for name in CONVOLVING]
    together = measure(examples(model, ALWAYS, UNTIL, batch_size=None), made, [model] * len(made))
    assert 0 < model.failed < 12
    for name, result in zip(CONVOLVING, together, strict=True):
        expected = alone(name)
        pd.testing.assert_frame_equal(table_of(result), expected, rtol=1e-5, atol=1e-5)
    assert set(table_of(together[0])["images"]) == set(table_of(together[1])["images"]) == {50}
    assert set(table_of(together[3])["n"]) == {50}


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
        ChannelActivations(nodes=NODES, attack=ALWAYS).measure(model, examples(model, ALWAYS))


def shared(name: str, count: int, batch_size: int) -> list[pd.DataFrame]:
    """The results of all processes, each of which attacks and sees its own part of the images."""
    models = [Watched() for _ in range(count)]  # here, since threads share the state of random numbers

    def work(processes: Processes) -> pd.DataFrame:
        model = models[processes.rank]
        metric = fresh(name)
        crafted = examples(model, *metric.attacks, batch_size=batch_size, processes=processes)
        return table_of(measure(crafted, [metric], [model], processes)[0])

    return in_threads(count, work)


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize(("count", "batch_size"), [(2, 7), (3, 16), (5, 16)])
def test_several_processes_find_what_one_finds(name: str, count: int, batch_size: int) -> None:
    """Each of them; whole batches are the same to the last bit, and one of five has no images at all."""
    for found in shared(name, count, batch_size):
        if batch_size == 16:
            pd.testing.assert_frame_equal(found, alone(name), check_exact=True, check_like=True)
        else:
            pd.testing.assert_frame_equal(found, alone(name), rtol=1e-5, atol=1e-7, check_like=True)


def test_a_metric_begins_anew_with_every_pass() -> None:
    model, metric = Watched(), ActivationIncrements(nodes=NODES, attack=ALWAYS)
    crafted = examples(model, ALWAYS)
    metric.measure(model, crafted)  # the first time, one image more shows where the channels are
    before = model.measured
    one = metric.measure(model, crafted)
    cost = model.measured - before
    two = metric.measure(model, crafted)
    pd.testing.assert_frame_equal(one.frame, two.frame, check_exact=True)
    assert model.measured == before + 2 * cost


def test_batches_of_any_iterable_are_shown_as_they_are() -> None:
    model = Watched()
    batches = list(examples(model, ALWAYS))
    found = ChannelActivations(nodes=NODES, attack=ALWAYS).measure(model, iter(batches))
    pd.testing.assert_frame_equal(found.frame, alone("channels"), check_exact=True)
    parts = [batches[0].part(0, 5), batches[0].part(5, 16), *batches[1:]]
    assert parts[1].start == 5 and parts[1].indices.tolist() == list(range(5, 16))
    found = ChannelActivations(nodes=NODES, attack=ALWAYS).measure(model, parts)
    np.testing.assert_allclose(found.s("1"), channels.ChannelStatistics(alone("channels")).s("1"), rtol=1e-5)
