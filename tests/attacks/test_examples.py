from __future__ import annotations

import errno
import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from coprobe.attacks import AdversarialExamples, Attack, parse
from coprobe.attacks.examples import CLEAN
from coprobe.core.randomness import ImageRandomness
from coprobe.data import Dataset
from coprobe.errors import RunError
from coprobe.metrics.accuracy import Noise, evaluate
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

    def run(self, model: nn.Module, x: Tensor, y: Tensor, randomness: ImageRandomness) -> Tensor:
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


def test_what_is_put_aside_comes_back_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file that nobody sees, in batches of the sizes that they had, as often as one likes."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    examples = AdversarialExamples(
        model(), dataset(23), [parse("pgd:2", EPSILON), parse("cw:2", EPSILON)], batch_size=5, keep=True
    )
    first = [(batch.start, batch.labels.clone(), {k: v.clone() for k, v in batch.images.items()}) for batch in examples]
    assert [start for start, _, _ in first] == [0, 5, 10, 15, 20] and not list(tmp_path.iterdir())
    for _ in range(2):
        again = list(examples)
        assert len(again) == len(first)
        for (start, labels, images), batch in zip(first, again, strict=True):
            assert (batch.start, list(batch.images)) == (start, list(images)) and torch.equal(batch.labels, labels)
            for spec in images:
                assert torch.equal(batch.images[spec], images[spec]) and batch.images[spec].dtype == torch.float32
            batch.images["pgd:2"].zero_()  # what one reader does to them, the next does not see


def test_two_readers_of_what_is_put_aside_do_not_disturb_each_other() -> None:
    examples = AdversarialExamples(model(), dataset(), [parse("pgd:2", EPSILON)], batch_size=3, keep=True)
    first = list(examples)
    for batch, one, other in zip(first, examples, examples, strict=True):
        assert torch.equal(one.images["pgd:2"], batch.images["pgd:2"])
        assert torch.equal(other.images["pgd:2"], batch.images["pgd:2"])


def test_a_pass_over_kept_images_shows_no_progress_and_asks_no_model(attacks: list[str]) -> None:
    examples = AdversarialExamples(model(), dataset(), [parse("pgd:2", EPSILON)], batch_size=3, keep=True)
    list(examples), list(examples)
    assert attacks == ["pgd:2"] * 3


@pytest.mark.parametrize("after", [0, 1000, 3000])
def test_a_full_disk_is_one_line(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it fills up; the batches that were yielded before have been seen."""

    class Small(io.BytesIO):
        def write(self, data: Any) -> int:
            if self.tell() + memoryview(data).nbytes > after:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Small())
    monkeypatch.setattr(tempfile, "tempdir", "/some/where")
    examples = AdversarialExamples(model(), dataset(), [parse("pgd:2", EPSILON)], batch_size=3, keep=True)
    seen = []
    with pytest.raises(RunError) as error:
        seen.extend(batch.start for batch in examples)
    # 3 images of 60 numbers, clean and adversarial: 1440 bytes a batch
    assert seen == [0, 3][: after // 1440]
    assert str(error.value) == (
        "/some/where: No space left on device, and the adversarial images need room there; "
        "set TMPDIR to another directory, or lower --limit"
    )


def test_followers_see_the_iterates_of_every_portion() -> None:
    """From the start on; what they pass on is what comes out."""
    data, attack, seen = dataset(), parse("pgd:3", EPSILON), []

    def follower(start: int, x: Tensor, steps: Iterator[Tensor]) -> Iterator[Tensor]:
        for step, x_t in enumerate(steps):
            seen.append((start, step, len(x)))
            yield x_t

    network = model()
    examples = AdversarialExamples(network, data, [attack], batch_size=3, seed=5)
    examples.followers["pgd:3"] = [follower, follower]
    followed = list(examples)
    assert seen == [(start, step, min(3, 7 - start)) for start in (0, 3, 6) for step in range(4) for _ in range(2)]
    expected = AdversarialExamples(network, data, [attack], batch_size=3, seed=5, plain=True)
    for one, other in zip(followed, expected, strict=True):
        assert torch.equal(one.images["pgd:3"], other.images["pgd:3"])


def test_sizes_are_remembered_for_the_next_examples() -> None:
    class Cramped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.failed = nn.Sequential(nn.Flatten(), nn.Linear(60, 4)), 0

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 40:
                self.failed += 1
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self.network(x)

    network, data = Cramped(), dataset(50)
    sizes = [[len(batch.labels) for batch in AdversarialExamples(network, data, [parse("pgd:2:rule=always", EPSILON)])]
             for _ in range(2)]  # fmt: skip
    assert sizes == [[50], [25] * 2] and network.failed == 1
