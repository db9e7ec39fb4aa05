"""The overlap of salient channels against Python sets and against images that were made to agree or not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from coprobe.attacks import AdversarialBatch
from coprobe.errors import InputError, RunError
from coprobe.metrics import ChannelOverlap

MODEL = nn.Sequential(nn.Identity())


def batches(moved: Tensor, size: int = 3) -> list[AdversarialBatch]:
    """Images whose channels move by `moved` (images, channels), at one of two positions."""
    adversarial = torch.stack([moved, torch.zeros_like(moved)], 2)[..., None]
    return [
        AdversarialBatch(start, torch.zeros(len(part), dtype=torch.int64), {"clean": torch.zeros_like(part), "a": part})
        for start, part in zip(range(0, len(moved) or 1, size), adversarial.split(size), strict=True)
    ]


def jaccard(one: set[int], other: set[int]) -> float:
    return len(one & other) / len(one | other)


def best(sums: list[float], top: int) -> set[int]:
    return set(sorted(range(len(sums)), key=lambda k: (-sums[k], k))[:top])


@pytest.mark.parametrize("top", [1, 2, 5, 6])
@pytest.mark.parametrize("size", [1, 3, 11])
def test_agrees_with_sets(top: int, size: int) -> None:
    moved = torch.randn(11, 6, generator=torch.Generator().manual_seed(3))
    squared = (moved.double() ** 2).tolist()
    everyone, even, odd = (
        best([sum(image[k] for image in part) for k in range(6)], top)
        for part in (squared, squared[::2], squared[1::2])
    )
    (row,) = ChannelOverlap(node="0", attack="a", top=top).measure(MODEL, batches(moved, size)).to_dict("records")
    expected = sum(jaccard(best(image, top), everyone) for image in squared) / 11
    assert row["jaccard_images"] == pytest.approx(expected, rel=1e-12)
    assert row["jaccard_halves"] == pytest.approx(jaccard(even, odd), rel=1e-12)
    assert (row["node"], row["attack"], row["top"], row["images"]) == ("0", "a", top, 11)
    assert (expected < 1) == (top < 6), "the oracle tells agreement from disagreement"


def test_the_same_channels_in_every_image() -> None:
    moved = torch.tensor([[0.1, 5, 0, -6], [0, -0.4, 0.1, 0.5], [0, 2, 1, 2]])
    (row,) = ChannelOverlap(node="0", attack="a", top=2).measure(MODEL, batches(moved)).to_dict("records")
    assert (row["jaccard_images"], row["jaccard_halves"]) == (1, 1)


def test_halves_are_the_images_of_even_and_odd_index() -> None:
    moved = torch.tensor([[3.0, 0, 0, 0], [0, 1, 0, 0]] * 4)
    (row,) = ChannelOverlap(node="0", attack="a", top=1).measure(MODEL, batches(moved)).to_dict("records")
    assert row["jaccard_halves"] == 0
    assert row["jaccard_images"] == 0.5  # the data set's top channel is 0


def test_of_equal_channels_the_first_comes_first() -> None:
    (row,) = ChannelOverlap(node="0", attack="a").measure(MODEL, batches(torch.zeros(4, 80))).to_dict("records")
    assert (row["jaccard_images"], row["jaccard_halves"]) == (1, 1)


@pytest.mark.parametrize("top", [0, -1, 7])
def test_a_top_that_is_not_there(top: int) -> None:
    with pytest.raises(InputError, match=rf"top {top}: node '0' has 6 channels"):
        ChannelOverlap(node="0", attack="a", top=top).measure(MODEL, batches(torch.ones(4, 6)))


def test_too_few_images_and_unknown_nodes() -> None:
    for images in (0, 1):
        with pytest.raises(InputError, match=f"{images} images have no two halves"):
            ChannelOverlap(node="0", attack="a").measure(MODEL, batches(torch.ones(images, 6))[:images])
    with pytest.raises(InputError, match="unknown node 'Q'"):
        ChannelOverlap(node="Q", attack="a").measure(MODEL, batches(torch.ones(4, 6)))


def test_activations_that_are_not_finite() -> None:
    moved = torch.ones(4, 6)
    moved[2, 1] = torch.nan
    with pytest.raises(RunError, match="not finite"):
        ChannelOverlap(node="0", attack="a").measure(MODEL, batches(moved))
