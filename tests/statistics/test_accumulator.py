"""The accumulator against NumPy on stored activations, and its merging, pickling and memory."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from coprobe.errors import RunError
from coprobe.statistics import ChannelAccumulator, accumulator, channel_sums, differences_squared

SHAPES = [(7, 5, 4, 3), (7, 6), (3, 2, 9), (5, 1, 1, 1)]


def pair(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randn(shape, generator=generator).relu()
    return clean, (clean + 0.3 * torch.randn(shape, generator=generator)).relu()


def reference(clean: Tensor, adversarial: Tensor) -> dict[str, np.ndarray]:
    c, a = (x.numpy().astype(np.float64).reshape(*x.shape[:2], -1) for x in (clean, adversarial))
    return {
        "difference_squared": ((a - c) ** 2).sum((0, 2)),
        "difference": (a - c).sum((0, 2)),
        "clean": c.sum((0, 2)),
        "clean_squared": (c**2).sum((0, 2)),
        "adversarial": a.sum((0, 2)),
        "adversarial_squared": (a**2).sum((0, 2)),
        "norm": np.sqrt(((a - c) ** 2).sum((1, 2))).sum(),
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_agree_with_numpy(shape: tuple[int, ...]) -> None:
    sums, expected = channel_sums(*pair(*shape)), reference(*pair(*shape))
    assert sums.keys() == expected.keys()
    for name, value in expected.items():
        assert sums[name].dtype == torch.float64
        np.testing.assert_allclose(sums[name].numpy(), value, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("limit", [1, 24, 25, 60, 10**6])
def test_size_of_the_portions_does_not_matter(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = channel_sums(*pair(*SHAPES[0]))
    monkeypatch.setitem(accumulator._PORTION, "cpu", limit)
    for name, value in channel_sums(*pair(*SHAPES[0])).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-12, atol=1e-14)


def test_layout_of_the_tensors_does_not_matter() -> None:
    clean, adversarial = pair(*SHAPES[0])
    for name, value in channel_sums(clean, adversarial.contiguous(memory_format=torch.channels_last)).items():
        torch.testing.assert_close(value, channel_sums(clean, adversarial)[name], rtol=1e-14, atol=0)


def test_small_differences_are_not_lost_in_float32() -> None:
    # 1 and the next float32: their squared difference underflows to nothing beside sums of squares in float32.
    clean = torch.ones(1000, 1, 4, 4)
    adversarial = clean + torch.finfo(torch.float32).eps
    expected = 16_000 * float(torch.finfo(torch.float32).eps) ** 2
    assert channel_sums(clean, adversarial)["difference_squared"].item() == pytest.approx(expected, rel=1e-12)


def filled(*batches: tuple[Tensor, Tensor]) -> ChannelAccumulator:
    accumulator = ChannelAccumulator(5)
    for batch in batches:
        accumulator.update(*batch)
    return accumulator


def assert_same(left: ChannelAccumulator, right: ChannelAccumulator, rtol: float) -> None:
    one, other = left.compute(), right.compute()
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=rtol, atol=1e-13, err_msg=name)


BATCHES = [pair(count, 5, 4, 3, seed=count) for count in (1, 2, 7, 3)]


def test_batches_add_up() -> None:
    whole = tuple(torch.cat(side) for side in zip(*BATCHES, strict=True))
    assert_same(filled(*BATCHES), filled((whole[0], whole[1])), 1e-12)
    result = filled(*BATCHES).compute()
    assert (result["images"], result["positions"]) == (13, 12)


@pytest.mark.parametrize("grouping", [[[0], [1], [2], [3]], [[0, 1], [2, 3]], [[3, 1], [0, 2]], [[2], [0, 1, 3]]])
def test_shards_merge_exactly(grouping: list[list[int]]) -> None:
    shards = [filled(*(BATCHES[i] for i in group)) for group in grouping]
    total = shards[0]
    for shard in shards[1:]:
        total.merge_state(shard)
    assert_same(total, filled(*BATCHES), 1e-12)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_an_empty_shard_changes_nothing() -> None:
    empty = ChannelAccumulator(5)
    empty.merge_state(filled(*BATCHES))
    assert_same(empty, filled(*BATCHES), 1e-15)


def test_pickled_and_reset() -> None:
    accumulator = filled(*BATCHES)
    assert_same(pickle.loads(pickle.dumps(accumulator)), accumulator, 0)
    accumulator.reset()
    assert accumulator.images == 0 and not accumulator.clean.any()


def test_memory_does_not_grow() -> None:
    accumulator = filled(BATCHES[0])
    before = {name: getattr(accumulator, name).shape for name in accumulator._defaults}
    for _ in range(20):
        accumulator.update(*BATCHES[2])
    assert {name: getattr(accumulator, name).shape for name in accumulator._defaults} == before
    assert set(before.values()) == {torch.Size([5]), torch.Size([])}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_values_that_are_not_finite_are_an_error(value: float, side: int) -> None:
    batch = [x.clone() for x in BATCHES[2]]
    batch[side][3, 2, 1, 1] = value
    with pytest.raises(RunError, match="not finite"):
        filled(BATCHES[0], (batch[0], batch[1])).compute()


@pytest.mark.parametrize("limit", [1, 60, 10**6])
def test_differences_of_every_image(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(accumulator._PORTION, "cpu", limit)
    clean, adversarial = BATCHES[2]
    found = differences_squared(clean, adversarial)
    assert found.shape == clean.shape[:2] and found.dtype == torch.float64
    for image in range(len(clean)):
        for k in range(clean.shape[1]):
            moved = adversarial[image, k].double() - clean[image, k].double()
            assert found[image, k].item() == pytest.approx(float((moved**2).sum()), rel=1e-12)
