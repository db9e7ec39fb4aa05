from __future__ import annotations

import errno
import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from coprobe.attacks import AdversarialExamples, Attack, StepAttack, parse
from coprobe.attacks.examples import CLEAN, Spool
from coprobe.core.processes import Processes
from coprobe.core.randomness import ImageRandomness
from coprobe.data import Dataset
from coprobe.errors import RunError
from coprobe.metrics import Accuracy, Noise
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


@pytest.mark.parametrize("spool", [None, Spool()], ids=["anew", "spool"])
def test_second_pass_gives_the_same_and_crafts_again_only_without_a_spool(spool: Spool | None) -> None:
    examples = AdversarialExamples(
        model(), dataset(), [parse("pgd:2", EPSILON), Counting(epsilon=EPSILON)], batch_size=3, spool=spool
    )
    first, second = list(examples), list(examples)
    assert Counting.calls == ([3, 3, 1] if spool else [3, 3, 1] * 2)
    for a, b in zip(first, second, strict=True):
        assert a.start == b.start and torch.equal(a.labels, b.labels) and a.images.keys() == b.images.keys()
        assert all(torch.equal(a.images[spec], b.images[spec]) for spec in a.images)


def test_pass_that_was_left_is_not_kept() -> None:
    examples = AdversarialExamples(model(), dataset(), [Counting(epsilon=EPSILON)], batch_size=3, spool=Spool())
    next(iter(examples))
    assert [batch.start for batch in examples] == [0, 3, 6]


def test_progress_counts_the_images_of_every_pass() -> None:
    done: list[Any] = []

    @contextmanager
    def progress(what: str, images: int) -> Iterator[Any]:
        done.append((what, images))
        yield done.append

    examples = AdversarialExamples(model(), dataset(), [parse("fgsm", EPSILON)], batch_size=3, progress=progress)
    list(examples)
    assert done == [("FGSM", 7), 3, 3, 1]
    list(replace(examples, attacks=[]))
    assert done[4:] == [("clean images", 7), 3, 3, 1]


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
    examples = AdversarialExamples(flat, data, [parse("pgd:1", EPSILON)], batch_size=7)
    (batch,) = examples
    start = batch.images["pgd:1"] - data.images / 255
    seen.clear()
    Accuracy(attacks=(), noises=(Noise("uniform", EPSILON),)).measure(flat, [batch])
    noise = seen[0] - data.images / 255
    correlation = torch.corrcoef(torch.stack([start.flatten(), noise.flatten()]))[0, 1]
    assert noise.abs().max() > 0.9 * EPSILON and start.abs().max() > 0.9 * EPSILON
    assert abs(correlation) < 4 / start.numel() ** 0.5


def test_what_is_put_aside_comes_back_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file that nobody sees, in batches of the sizes that they had, as often as one likes."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    examples = AdversarialExamples(
        model(), dataset(23), [parse("pgd:2", EPSILON), parse("cw:2", EPSILON)], batch_size=5, spool=Spool()
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
    examples = AdversarialExamples(model(), dataset(), [parse("pgd:2", EPSILON)], batch_size=3, spool=Spool())
    first = list(examples)
    for batch, one, other in zip(first, examples, examples, strict=True):
        assert torch.equal(one.images["pgd:2"], batch.images["pgd:2"])
        assert torch.equal(other.images["pgd:2"], batch.images["pgd:2"])


def test_a_pass_over_kept_images_shows_no_progress_and_asks_no_model(attacks: list[str]) -> None:
    examples = AdversarialExamples(model(), dataset(), [parse("pgd:2", EPSILON)], batch_size=3, spool=Spool())
    list(examples), list(examples)
    assert attacks == ["pgd:2"] * 3


@pytest.mark.parametrize("after", [0, 1000, 1500])
def test_a_full_disk_is_one_line(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it fills up; the batches that were yielded before have been seen."""

    class Small(io.BytesIO):
        def write(self, data: Any) -> int:
            if self.tell() + memoryview(data).nbytes > after:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Small())
    monkeypatch.setattr(tempfile, "tempdir", "/some/where")
    examples = AdversarialExamples(model(), dataset(), [parse("pgd:2", EPSILON)], batch_size=3, spool=Spool())
    seen = []
    with pytest.raises(RunError) as error:
        seen.extend(batch.start for batch in examples)
    # 3 images of 60 numbers: 720 bytes a batch
    assert seen == [0, 3][: after // 720]
    assert str(error.value) == (
        "/some/where: No space left on device, and the adversarial images need room there; "
        "set TMPDIR to another directory, or lower --limit"
    )


@pytest.mark.parametrize("spec", ["pgd:3", "fgsm", "mi-fgsm:4", "pgd:2:rule=always:restarts=2"])
def test_a_trajectory_is_that_of_the_steps(spec: str) -> None:
    data, attack, network = dataset(), parse(spec, EPSILON), model()
    assert isinstance(attack, StepAttack)
    batches = list(
        AdversarialExamples(network, data, [attack, parse("cw:2", EPSILON)], batch_size=3, seed=5, trajectories={spec})
    )
    expected = list(attack.steps(network, data.images / 255, data.labels, seed=5))
    for x_t, *parts in zip(expected, *(batch.trajectories[spec] for batch in batches), strict=True):
        torch.testing.assert_close(torch.cat(parts), x_t, rtol=0, atol=1e-6)
    for batch in batches:
        assert torch.equal(batch.images[spec], batch.trajectories[spec][-1]) and set(batch.trajectories) == {spec}
        part = batch.part(1, 2)
        assert torch.equal(part.trajectories[spec][0], batch.trajectories[spec][0][1:2])


def test_every_pass_reads_and_converts_each_image_once() -> None:
    """Whatever is crafted of it, with restarts and AutoAttack, in the fast and in the plain way."""

    class Read(Tensor):
        """Notes which rows are taken, and how many numbers become floats."""

        rows: ClassVar[list[int]] = []
        converted: ClassVar[list[int]] = []

        @classmethod
        def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = super().__torch_function__(function, types, args, kwargs or {})
            if function is Tensor.__getitem__:
                cls.rows += range(args[1].start, args[1].stop)
            if isinstance(result, Tensor) and result.is_floating_point() and not args[0].is_floating_point():
                cls.converted.append(len(result))
                return result.as_subclass(Tensor)
            return result

    data = dataset(20)
    read = replace(data, images=data.images.as_subclass(Read))
    specs = ("fgsm", "pgd:3:restarts=2", "cw:2", "square")
    attacks = [parse(spec, EPSILON) for spec in specs]
    for plain in (False, True):
        for trajectories in ((), ("fgsm",)):
            Read.rows.clear(), Read.converted.clear()
            settings: dict[str, Any] = {"batch_size": 6, "plain": plain, "trajectories": trajectories}
            list(AdversarialExamples(model(), read, attacks, **settings))
            assert Read.rows == list(range(20)) and Read.converted == [6, 6, 6, 2]


def test_what_one_question_crafted_serves_the_next_attack_by_attack(attacks: list[str]) -> None:
    network, data, spool = model(), dataset(), Spool()
    pair = [parse("fgsm", EPSILON), parse("pgd:2", EPSILON)]
    one = list(AdversarialExamples(network, data, pair[:1], batch_size=3, spool=spool))
    both = list(AdversarialExamples(network, data, pair, batch_size=4, spool=spool))
    assert attacks == ["fgsm"] * 3 + ["pgd:2"] * 3, "in the batches of the first pass"
    for batch, other in zip(one, both, strict=True):
        assert torch.equal(batch.images["fgsm"], other.images["fgsm"])
    list(AdversarialExamples(network, data, [parse("fgsm", EPSILON / 2)], batch_size=3, spool=spool))
    assert attacks[6:] == ["fgsm"] * 3, "another radius is another attack"
    shard = AdversarialExamples(network, dataset(70), pair[:1], batch_size=16, spool=spool, processes=Processes(1, 2))
    assert [batch.start for batch in shard] == [32, 48, 64] and attacks[9:] == ["fgsm"] * 3


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
