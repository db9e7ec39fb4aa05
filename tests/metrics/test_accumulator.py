"""The accumulator against NumPy on stored activations, and how it takes others over."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from coprobe.errors import RunError
from coprobe.metrics import accumulator
from coprobe.metrics.accumulator import SUMS, ChannelAccumulator, differences_squared, image_sums

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
    sums, whole = filled(pair(*shape)).compute(), reference(*pair(*shape))
    assert sums.keys() == whole.keys() | {"images", "positions"}
    for name, value in whole.items():
        assert np.asarray(sums[name]).dtype == np.float64
        np.testing.assert_allclose(sums[name], value, rtol=1e-10, atol=1e-14)
    per_image = image_sums(*pair(*shape))
    assert per_image.dtype == torch.float64 and per_image.shape == (shape[0], len(SUMS), shape[1])
    for image in range(shape[0]):
        expected = reference(*(x[image : image + 1] for x in pair(*shape)))
        for name, value in zip(SUMS, per_image[image], strict=True):
            np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("limit", [1, 24, 25, 60, 10**6])
def test_size_of_the_portions_does_not_matter(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = image_sums(*pair(*SHAPES[0]))
    monkeypatch.setitem(accumulator._PORTION, "cpu", limit)
    assert torch.equal(image_sums(*pair(*SHAPES[0])), whole)


def test_layout_of_the_tensors_does_not_matter() -> None:
    clean, adversarial = pair(*SHAPES[0])
    other = image_sums(clean, adversarial.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(other, image_sums(clean, adversarial), rtol=1e-14, atol=0)


def test_small_differences_are_not_lost_in_float32() -> None:
    # 1 and the next float32: their squared difference underflows to nothing beside sums of squares in float32.
    clean = torch.ones(1000, 1, 4, 4)
    adversarial = clean + torch.finfo(torch.float32).eps
    expected = 16_000 * float(torch.finfo(torch.float32).eps) ** 2
    found = filled((clean, adversarial)).compute()["difference_squared"]
    assert found.item() == pytest.approx(expected, rel=1e-12)


def filled(*batches: tuple[Tensor, Tensor], start: int = 0) -> ChannelAccumulator:
    """Batches one after another, the first image of which has the index `start`."""
    filling = ChannelAccumulator()
    for batch in batches:
        filling.update(start, *batch)
        start += len(batch[0])
    return filling


def assert_same(left: ChannelAccumulator, right: ChannelAccumulator) -> None:
    """Bit for bit."""
    one, other = left.compute(), right.compute()
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name, strict=True)


BATCHES = [pair(count, 5, 4, 3, seed=count) for count in (1, 2, 7, 3)]
STARTS = [0, 1, 3, 10]


def test_batches_add_up() -> None:
    whole = tuple(torch.cat(side) for side in zip(*BATCHES, strict=True))
    assert_same(filled(*BATCHES), filled((whole[0], whole[1])))
    result = filled(*BATCHES).compute()
    assert (result["images"], result["positions"]) == (13, 12)


@pytest.mark.parametrize("grouping", [[[0], [1], [2], [3]], [[0, 1], [2, 3]], [[3, 1], [0, 2]], [[2], [0, 1, 3]]])
def test_shards_add_up_bit_for_bit(grouping: list[list[int]]) -> None:
    """Whoever saw which batches, in whatever order, and whoever takes the others over."""
    for taker in range(len(grouping)):
        shards = []
        for group in grouping:
            shard = ChannelAccumulator()
            for i in group:
                shard.update(STARTS[i], *BATCHES[i])
            shards.append(shard)
        for shard in shards[:taker] + shards[taker + 1 :]:
            shards[taker].merge_state(pickle.loads(pickle.dumps(shard.state)))
        assert_same(shards[taker], filled(*BATCHES))


def test_an_empty_shard_changes_nothing() -> None:
    empty, full = ChannelAccumulator(), filled(*BATCHES)
    full.merge_state(empty.state)
    assert_same(full, filled(*BATCHES))
    empty.merge_state(full.state)
    assert_same(empty, filled(*BATCHES))


def held(value: Any) -> int:
    """Bytes of all tensors below `value`, those included that only views keep alive."""
    if isinstance(value, Tensor):
        return value.untyped_storage().nbytes()
    if isinstance(value, dict):
        return sum(map(held, value.values()))
    return sum(map(held, value)) if isinstance(value, tuple) else 0


def test_memory_grows_with_the_logarithm_of_the_images() -> None:
    accumulator = ChannelAccumulator()
    batch = pair(7, 5, 4, 3)
    for count in range(1, 150):
        accumulator.update(7 * (count - 1), *batch)
        # one number per channel and sum, and the norm, float64, for two blocks per level at most
        assert held(accumulator.state) <= 2 * (7 * count).bit_length() * 8 * (len(SUMS) * 5 + 1)
    assert len(pickle.dumps(accumulator.state)) < 30_000


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
