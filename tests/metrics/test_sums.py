"""Sums over images that do not depend, in any bit, on who added what and when."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coprobe.metrics.sums import ImageSums

IMAGES = 75


def values(first: int = 0, count: int = IMAGES) -> Tensor:
    """Per image 3 numbers of very different size, so that nearly every other order of adding gives other bits."""
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-30, 30, (IMAGES, 3), generator=generator)
    mantissas = torch.randn(IMAGES, 3, generator=generator, dtype=torch.float64)
    return torch.ldexp(mantissas, exponents)[first : first + count]


def literal(first: int, length: int) -> Tensor | None:
    """The tree as it is defined: a block is the sum of its two halves, or the half that has images."""
    if length == 1:
        return values()[first] if first < IMAGES else None
    left, right = literal(first, length // 2), literal(first + length // 2, length // 2)
    if left is None or right is None:
        return left if right is None else right
    return left + right


def expected() -> Tensor:
    root = literal(0, 128)
    assert root is not None
    return root


def total(sums: ImageSums) -> Tensor:
    added = sums.total()
    assert added is not None
    return added


def ranges(cuts: list[int]) -> list[tuple[int, int]]:
    edges = [0, *sorted(set(cuts)), IMAGES]
    return list(itertools.pairwise(edges))


CUTS = st.lists(st.integers(1, IMAGES - 1), max_size=20)


def test_the_order_of_adding_matters_for_these_values() -> None:
    """Or no test here could fail."""
    generator = torch.Generator().manual_seed(1)
    orders = [values()[torch.randperm(IMAGES, generator=generator)].cumsum(0)[-1] for _ in range(20)]
    assert len({tuple(added.tolist()) for added in orders}) > 5


@settings(deadline=None, derandomize=True)
@given(cuts=CUTS, order=st.randoms(use_true_random=False))
def test_any_batches_in_any_order_give_the_sum_of_the_tree(cuts: list[int], order: Any) -> None:
    parts = ranges(cuts)
    order.shuffle(parts)
    sums = ImageSums()
    for first, stop in parts:
        sums.add(first, values()[first:stop])
    assert torch.equal(total(sums), expected())
    torch.testing.assert_close(total(sums), values().sum(0), rtol=1e-9, atol=0)


@settings(deadline=None, derandomize=True)
@given(cuts=CUTS, owners=st.lists(st.integers(0, 3), min_size=25, max_size=25), taker=st.integers(0, 3))
def test_any_division_among_processes_gives_the_sum_of_the_tree(cuts: list[int], owners: list[int], taker: int) -> None:
    """Some may have no images, and each can take the others over."""
    shares = [ImageSums() for _ in range(4)]
    for (first, stop), owner in zip(ranges(cuts), owners, strict=False):
        shares[owner].add(first, values()[first:stop])
    for rank, share in enumerate(shares):
        if rank != taker:
            shares[taker].merge_state(pickle.loads(pickle.dumps(share.state)))
    assert torch.equal(total(shares[taker]), expected())


@pytest.mark.parametrize("first", [1, 5, 64, 1000])
def test_images_need_not_begin_at_zero(first: int) -> None:
    one, two = ImageSums(), ImageSums()
    one.add(first, values())
    for image in reversed(range(IMAGES)):
        two.add(first + image, values(image, 1))
    assert torch.equal(total(one), total(two))
    torch.testing.assert_close(total(one), values().sum(0), rtol=1e-9, atol=0)


def test_a_total_can_be_taken_on_the_way() -> None:
    sums = ImageSums()
    for image in range(IMAGES):
        sums.add(image, values(image, 1))
        until_here = ImageSums()
        until_here.add(0, values(0, image + 1))
        assert torch.equal(total(sums), total(until_here))
    assert torch.equal(total(sums), expected())


def test_no_images_have_no_sum() -> None:
    sums = ImageSums()
    assert sums.total() is None and sums.state == {}
    sums.add(3, torch.zeros(0, 4))
    sums.merge_state({})
    assert sums.total() is None


def test_numbers_without_channels_and_of_one_image() -> None:
    sums = ImageSums()
    sums.add(6, torch.tensor([2.5], dtype=torch.float64))
    assert total(sums).item() == 2.5
    sums.add(7, torch.tensor([1.0, 0.5, 4.0], dtype=torch.float64))
    assert total(sums).item() == 8 and total(sums).shape == ()


def test_memory_grows_with_the_logarithm_of_the_images() -> None:
    sums, first = ImageSums(), 0
    for count in (100, 7, 250, 250, 1, 99, 31, 640) * 20:
        sums.add(first, torch.ones(count, 3, dtype=torch.float64))
        first += count
        assert len(sums.state) <= 2 * first.bit_length()
        held = sum(block.untyped_storage().nbytes() for block in sums.state.values())
        assert held == 8 * 3 * len(sums.state), "no block keeps a batch in memory"
    assert total(sums).tolist() == [first] * 3


def test_what_is_added_may_change_afterwards() -> None:
    sums, batch = ImageSums(), values(0, 3).clone()
    sums.add(1, batch)
    before = total(sums).clone()
    batch.zero_()
    assert torch.equal(total(sums), before)
