"""Images that leave the batch when they are done come out as those that stay, bit for bit, on real architectures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coprobe.attacks import AdversarialExamples, Attack, StepAttack, batching, parse
from coprobe.attacks.base import PURPOSE
from coprobe.attacks.batching import State, Step, in_full_batches
from coprobe.core.engine import BatchSize
from coprobe.core.processes import Processes
from coprobe.core.randomness import ImageRandomness
from coprobe.data import Dataset
from coprobe.data.stream import ImageBatch, bounds, stream
from coprobe.errors import RunError
from tests.architectures import IMAGES, NETWORKS, subject
from tests.attacks.small import convolutional, fingerprint

SEED = 3


def attack_on(arch: str, spec: str) -> Attack:
    _, _, step = NETWORKS[arch]
    return parse(spec if "fgsm" in spec else f"{spec}:step-size={step}", 8 * step / 255)


def clean_images(data: Dataset, start: int, stop: int) -> tuple[Tensor, Tensor]:
    return data.images[start:stop] / 255, data.labels[start:stop]


@lru_cache
def whole(model: nn.Module, data: Dataset, attack: Attack, seed: int = SEED) -> Tensor:
    """All images at once, each taken through all steps."""
    return attack(model, *clean_images(data, 0, len(data)), seed=seed, plain=True)


def conveyed(model: nn.Module, data: Dataset, *attacks: Attack, **settings: Any) -> Tensor:
    """The same images portion by portion; of the last attack."""
    examples = AdversarialExamples(model, data, attacks, **{"seed": SEED, **settings})
    return torch.cat([batch.images[attacks[-1].spec] for batch in examples])


FORMS = pytest.mark.parametrize("form", ["as it is", "fast"])
ARCHS = pytest.mark.parametrize("arch", NETWORKS)


@pytest.mark.slow
@ARCHS
@FORMS
def test_images_fall_at_different_steps(arch: str, form: str) -> None:
    """Or the comparisons below would say little."""
    model, data = subject(arch, form)
    attack = attack_on(arch, "pgd:5")
    assert isinstance(attack, StepAttack)
    with torch.no_grad():
        wrong = [
            int((model(x).argmax(1) != data.labels).sum())
            for x in attack.steps(model, *clean_images(data, 0, IMAGES), seed=SEED)
        ]
    assert 0 < wrong[0] < wrong[-1] < IMAGES and len(set(wrong)) >= 5


@pytest.mark.slow
@ARCHS
@FORMS
@pytest.mark.parametrize("batch_size", [16, 17, 64])
def test_every_image_is_that_of_the_plain_way(arch: str, form: str, batch_size: int) -> None:
    model, data = subject(arch, form)
    attack = attack_on(arch, "pgd:5")
    expected = whole(model, data, attack)
    assert torch.equal(conveyed(model, data, attack, batch_size=batch_size), expected)
    assert not torch.equal(whole(model, data, attack, seed=SEED + 1), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        "fgsm",
        "fgsm:start=zero",
        "pgd:3:rule=always",
        "pgd:4:start=zero",
        "pgd:3:restarts=3",
        "pgd:2:restarts=2:rule=always",
        "cw:4",
        "cw:3:start=zero:rule=always",
        "pgd-eot:2:samples=3",
        "pgd-eot:2:samples=2:restarts=2",
        "mi-fgsm:4",
        "mi-fgsm:3:start=uniform:rule=always:decay=0.5",
    ],
)
def test_every_kind_of_attack_gives_the_images_of_the_plain_way(spec: str) -> None:
    model, data = subject("preact-resnet18", "fast")
    attack = attack_on("preact-resnet18", spec)
    expected = whole(model, data, attack)
    for batch_size in (16, 33):
        assert torch.equal(conveyed(model, data, attack, batch_size=batch_size), expected)


@pytest.mark.parametrize("seed", [0, 11])
@pytest.mark.parametrize(("rank", "count"), [(0, 2), (1, 2), (2, 3), (0, 9)])
def test_a_part_of_the_data_set_is_that_part_of_all(seed: int, rank: int, count: int) -> None:
    """What several processes craft is what one does; random numbers belong to the index."""
    model, data = subject("preact-resnet18", "fast")
    attack = attack_on("preact-resnet18", "pgd:4")
    examples = AdversarialExamples(model, data, [attack], batch_size=16, seed=seed, processes=Processes(rank, count))
    first, stop = examples.shard
    assert (first == stop) == (count > 5), "one of many processes has no images"
    expected = whole(model, data, attack, seed)[first:stop]
    batches = list(examples)
    assert [batch.start for batch in batches] == list(range(first, stop, 16))
    assert torch.equal(torch.cat([batch.images[attack.spec] for batch in batches] or [expected]), expected)
    for batch in batches:
        assert batch.indices.tolist() == list(range(batch.start, batch.start + len(batch.labels)))


@ARCHS
def test_indices_say_whose_random_numbers_these_are(arch: str) -> None:
    model, data = subject(arch, "fast")
    attack = attack_on(arch, "pgd:3")
    expected = whole(model, data, attack)
    rows = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(1))[:40]
    x, y = clean_images(data, 0, IMAGES)
    assert torch.equal(attack(model, x[rows], y[rows], seed=SEED, indices=rows), expected[rows])


@pytest.mark.parametrize("count", [1, 5, 15])
@pytest.mark.parametrize("arch", ["resnet18", "preact-resnet18", "vgg11"])
def test_few_images_are_those_of_the_plain_way_too(arch: str, count: int) -> None:
    model, data = subject(arch, "fast")
    attack = attack_on(arch, "pgd:5")
    x, y = clean_images(data, 1, 1 + count)
    assert torch.equal(attack(model, x, y, seed=SEED), attack(model, x, y, seed=SEED, plain=True))


class Counting(nn.Module):
    """Keeps the sizes of the batches that are attacked."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            self.sizes.append(len(x))
        return self.network(x)


def image_steps(attack: Attack, model: nn.Module, data: Dataset) -> int:
    """Steps that must be taken: of each image those that move it, and the one that does not, if it is not the last."""
    assert isinstance(attack, StepAttack)
    iterates = list(attack.steps(model, *clean_images(data, 0, len(data)), seed=SEED))
    needed = 0
    for before in iterates[:-1]:
        with torch.no_grad():
            correct = int((model(before).argmax(1) == data.labels).sum())
        needed += correct
    wrong_on_the_way = len(data) - correct
    return needed + wrong_on_the_way


@pytest.mark.parametrize("batch_size", [16, 24, 32])
def test_the_batch_stays_full_and_no_step_is_taken_for_nothing(batch_size: int) -> None:
    data, attack = bright(*range(0, 200, 5)), parse("pgd:12:step-size=3", 16 / 255)
    assert image_steps(attack, Slow(), data) == 160 + 40 * 12
    counting, plain = Counting(Slow()), Counting(Slow())
    conveyed(counting, data, attack, batch_size=batch_size)
    assert max(counting.sizes) == batch_size and min(counting.sizes) >= 16, "fewer than 16 would round otherwise"
    assert set(counting.sizes[: 640 // batch_size - 12]) == {batch_size}
    assert 640 <= sum(counting.sizes) <= 640 + 12 * 16, "but for the last images, whose batches are filled up"
    conveyed(plain, data, attack, batch_size=batch_size, plain=True)
    assert sum(plain.sizes) == 200 * 12


def test_a_weak_network_costs_far_less() -> None:
    model, data = subject("vgg11", "fast")
    attack = parse("pgd:12:step-size=3", 16 / 255)
    needed, counting = image_steps(attack, model, data), Counting(model)
    assert torch.equal(conveyed(counting, data, attack, batch_size=16), whole(model, data, attack))
    assert needed <= sum(counting.sizes) < IMAGES * 12 / 3


class Slow(nn.Module):
    """The margin of class 0 is brightness: bright images stay right, others are wrong at once."""

    def forward(self, x: Tensor) -> Tensor:
        margin = x.mean((1, 2, 3)) - 0.5
        return torch.stack([margin, -margin], 1)


def bright(*indices: int, count: int = 200) -> Dataset:
    images = torch.zeros(count, 1, 2, 3, dtype=torch.uint8)
    images[list(indices)] = 255
    return Dataset(images, torch.zeros(count, dtype=torch.int64), ("a", "b"), "made up", "test")


@pytest.mark.parametrize(("portions", "ahead"), [(0, 2), (1, 2), (5, 5), (10**6, 46)])
def test_how_far_it_runs_ahead_is_bounded(portions: int, ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the first image is on its way for 60 steps, all others are done: they wait for it in memory."""
    monkeypatch.setattr(batching, "_HELD_BACK", portions * 4 * 6 * 4)
    data, reads, yielded, furthest = bright(0), [0], 0, 0
    attack = parse("pgd:60:step-size=1", 16 / 255)

    def read() -> Iterator[ImageBatch]:
        for batch in stream(data, bounds(0, 200, 4)):
            reads.append(int(batch.indices[-1]) + 1)
            yield batch

    parts = []
    for part in attack.stream(Slow(), read(), SEED, BatchSize(4)):
        furthest = max(furthest, max(reads) // 4 - yielded)
        yielded += 1
        parts.append(part)
    assert yielded == 50 and furthest == ahead
    assert torch.equal(torch.cat(parts), whole(Slow(), data, attack))


class Cramped(nn.Module):
    """Memory runs out above so many images, from a call on."""

    def __init__(self, network: nn.Module, room: int, since: int = 0) -> None:
        super().__init__()
        self.network, self.room, self.since, self.calls = network, room, since, 0
        self.failed = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > self.since and len(x) > self.room:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return self.network(x)


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["pgd:5", "pgd:3:restarts=2", "pgd:3:rule=always", "pgd-eot:2:samples=2"])
@pytest.mark.parametrize("since", [0, 1, 2])
@pytest.mark.parametrize("plain", [False, True])
def test_memory_that_runs_out_on_the_way_changes_no_image(spec: str, since: int, plain: bool) -> None:
    model, data = subject("preact-resnet18", "fast")
    attack = attack_on("preact-resnet18", spec)
    cramped = Cramped(model, 20, since)
    before = fingerprint(cramped)
    assert torch.equal(conveyed(cramped, data, attack, plain=plain), whole(model, data, attack))
    assert 0 < cramped.failed <= 4, "a size that did not fit is not tried again"
    assert fingerprint(cramped) == before


def test_memory_that_runs_out_at_a_given_size_is_an_error() -> None:
    model, data = subject("preact-resnet18", "fast")
    cramped = Cramped(model, 20)
    before = fingerprint(cramped)
    with pytest.raises(RunError, match="out of memory with 64 images at once; lower --batch-size"):
        conveyed(cramped, data, attack_on("preact-resnet18", "pgd:5"), batch_size=64)
    assert fingerprint(cramped) == before


class Broken(nn.Module):
    """One image of many has logits that are finite where the gradient is not, or the other way round."""

    def __init__(self, network: nn.Module, what: str) -> None:
        super().__init__()
        self.network, self.what = network, what

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        white = x.amin((1, 2, 3)) > 0.99
        if self.what == "gradient":
            hole = 1 - x.mean((1, 2, 3))
            return logits + torch.where(white, (hole - hole).abs().sqrt(), 0.0)[:, None]
        return torch.where(white[:, None], logits * torch.nan, logits)


@pytest.mark.parametrize("what", ["gradient", "logits"])
@pytest.mark.parametrize("spec", ["fgsm", "pgd:3", "pgd:3:rule=always", "pgd:3:restarts=2", "cw:3"])
@pytest.mark.parametrize("plain", [False, True])
def test_an_image_without_a_gradient_is_an_error(what: str, spec: str, plain: bool) -> None:
    images = torch.randint(0, 200, (40, 1, 3, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images[33] = 255
    model = Broken(convolutional((1, 3, 4), 4).eval(), what)
    with torch.no_grad():
        labels = model(images / 255).argmax(1)
    data = Dataset(images, labels, tuple("abcd"), "one is white", "test")
    before = fingerprint(model)
    with pytest.raises(RunError, match="the model's logits or gradients are not finite"):
        conveyed(model, data, parse(f"{spec}:start=zero", 1e-3), batch_size=16, plain=plain)
    assert fingerprint(model) == before


@pytest.mark.parametrize("spec", ["pgd:3", "pgd:3:restarts=2", "pgd-eot:2:samples=2"])
@pytest.mark.parametrize("leave", ["close", "raise"])
def test_who_leaves_on_the_way_finds_the_model_as_it_was(spec: str, leave: str) -> None:
    """In training mode, with gradients; so it is between two portions as well."""
    model = convolutional((3, 4, 5), 4)
    data = Dataset(torch.randint(0, 256, (70, 3, 4, 5), dtype=torch.uint8), torch.arange(70) % 4, tuple("abcd"), "", "")
    before = fingerprint(model)
    batches: Iterator[Any] = iter(AdversarialExamples(model, data, [parse(spec, 0.1)], batch_size=16))
    for _ in range(2):
        next(batches)
        assert fingerprint(model) == before
    if leave == "close":
        batches.close()  # type: ignore[attr-defined]
    else:
        with pytest.raises(KeyError):
            batches.throw(KeyError("somebody else's"))  # type: ignore[attr-defined]
    assert fingerprint(model) == before


def test_every_image_takes_its_own_steps() -> None:
    """The step is called with each image's number of steps so far, and never more often than there are steps."""
    data, seen = bright(1, 2, 50, 199), Counter[tuple[int, int]]()

    def step(x: Tensor, y: Tensor, randomness: ImageRandomness, state: State, taken: Tensor) -> Step:
        assert torch.equal(state["index"], randomness.indices), "every image keeps its own state"
        pairs = set(zip(randomness.indices.tolist(), taken.tolist(), strict=True))
        seen.update(pairs)  # copies that fill the batch up count once
        assert torch.equal(x, clean_images(data, 0, 200)[0][randomness.indices])
        assert torch.equal(state["x_adv"], x + taken.view(-1, 1, 1, 1))
        return Step({**state, "x_adv": state["x_adv"] + 1}, x.amax((1, 2, 3)) == 1)

    def start(x: Tensor, randomness: ImageRandomness) -> State:
        return {"x_adv": x.clone(), "index": randomness.indices}

    done = list(in_full_batches(stream(data, bounds(0, 200, 9)), (0, PURPOSE), start, step, 7, BatchSize(24)))
    parts = [x_adv for _, x_adv in done]
    assert [len(part) for part in parts] == [9] * 22 + [2]
    assert torch.equal(torch.cat([batch.images for batch, _ in done]), clean_images(data, 0, 200)[0])
    steps = [7 if index in (1, 2, 50, 199) else 1 for index in range(200)]
    assert seen == Counter((index, taken) for index in range(200) for taken in range(steps[index]))
    expected = clean_images(data, 0, 200)[0] + torch.tensor(steps).view(-1, 1, 1, 1)
    assert torch.equal(torch.cat(parts), expected)
