import hashlib
import itertools
from dataclasses import replace

import pytest
import torch

from coprobe.data import Dataset, balanced_prefix, hold_out
from coprobe.errors import InputError


def dataset(labels, classes=3, size=4):
    labels = torch.as_tensor(labels, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (len(labels), 3, size, size), dtype=torch.uint8, generator=generator)
    return Dataset(images, labels, tuple("abcdefghij"[:classes]), "made", "train")


def literal_balanced_prefix(labels, limit):
    """One image at a time: the class with the fewest so far, the lowest among equals, that has images left."""
    queues = {c: [i for i, label in enumerate(labels) if label == c] for c in sorted(set(labels))}
    taken = dict.fromkeys(queues, 0)
    chosen = []
    while len(chosen) < min(limit, len(labels)):
        c = min((c for c in queues if taken[c] < len(queues[c])), key=lambda c: (taken[c], c))
        chosen.append(queues[c][taken[c]])
        taken[c] += 1
    return sorted(chosen)


def test_properties():
    data = dataset([0, 2, 1, 0])
    assert (len(data), data.num_classes, data.image_shape) == (4, 3, (3, 4, 4))


def test_subset_keeps_order_and_names():
    data = dataset([0, 2, 1, 0])
    part = data.subset([2, 0])
    assert part.labels.tolist() == [1, 0]
    assert torch.equal(part.images, data.images[[2, 0]])
    assert (part.classes, part.name, part.split) == (data.classes, "made", "train")
    assert torch.equal(data.subset(torch.tensor([2, 0])).images, part.images)


def test_digest_is_over_shape_images_and_labels():
    data = dataset([0, 1])
    raw = repr((2, 3, 4, 4)).encode() + data.images.numpy().tobytes() + data.labels.numpy().tobytes()
    assert data.digest() == hashlib.sha256(raw).hexdigest()[:16]
    assert data.digest() is data.digest()
    assert dataset([0, 2]).digest() != data.digest()
    turned = Dataset(data.images.transpose(2, 3), data.labels, data.classes, "made", "train")
    assert turned.digest() != data.digest()
    assert turned.subset([0, 1]).digest() == turned.digest()


def test_subset_does_not_inherit_the_digest():
    data = dataset([0, 1])
    before = data.digest()
    assert data.subset([0]).digest() != before


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 4, 4).double(), torch.zeros(2).long(), "torch.float64"),
        (
            torch.full((2, 3, 4, 4), 1.5),
            torch.zeros(2).long(),
            r"go from 1.5 to 1.5 \(image 0\) where 0 to 1 is needed",
        ),
        (torch.zeros(3, 4, 4).byte(), torch.zeros(3).long(), r"\(3, 4, 4\)"),
        (torch.zeros(2, 3, 0, 4).byte(), torch.zeros(2).long(), r"\(2, 3, 0, 4\)"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.zeros(2), "labels are torch.float32"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.zeros(3).long(), r"labels .* \(3,\).* \(2,\)"),
        (torch.zeros(0, 3, 4, 4).byte(), torch.zeros(0).long(), "no images"),
        (torch.zeros(3, 3, 4, 4).byte(), torch.tensor([0, 7, 9]), "row 1 has label 7; with 2 classes .* 0 to 1"),
        (torch.zeros(3, 3, 4, 4).byte(), torch.tensor([0, 1, -1]), "row 2 has label -1"),
    ],
)
def test_construction_refuses(images, labels, message):
    with pytest.raises(InputError, match=message):
        Dataset(images, labels, ("a", "b"), "made", "test")


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 7, 11, 12, 20, 29, 30, 31])
def test_balanced_prefix_matches_one_at_a_time(limit):
    labels = [2, 2, 0, 5, 2, 0, 0, 5, 2, 2, 2, 0, 0, 2, 0, 5, 1, 2, 2, 2, 0, 0, 2, 0, 0, 2, 2, 2, 2, 2]
    assert balanced_prefix(torch.tensor(labels), limit).tolist() == literal_balanced_prefix(labels, limit)


def test_balanced_prefixes_are_nested():
    labels = torch.randint(0, 4, (50,), generator=torch.Generator().manual_seed(1))
    chosen = [set(balanced_prefix(labels, limit).tolist()) for limit in range(1, 51)]
    assert all(small < large for small, large in itertools.pairwise(chosen))


def test_balanced_prefix_refuses_zero():
    with pytest.raises(InputError, match="--limit must be at least 1"):
        balanced_prefix(torch.tensor([0, 1]), 0)


def test_hold_out_is_disjoint_balanced_and_takes_the_last():
    data = dataset([0, 1, 2] * 10)
    train, held = hold_out(data, 12, 6)
    assert train.labels.bincount().tolist() == [4, 4, 4]
    assert held.labels.bincount().tolist() == [2, 2, 2]
    assert torch.equal(held.images, data.images[24:])
    assert torch.equal(train.images, data.images[:12])


def test_hold_out_of_unequal_classes():
    data = dataset([0] * 10 + [1] * 20, classes=2)
    train, held = hold_out(data, 4, 4)
    assert torch.equal(held.images, data.images[[8, 9, 28, 29]])
    assert torch.equal(train.images, data.images[[0, 1, 10, 11]])


def test_hold_out_does_not_depend_on_the_size_of_the_training_part():
    data = dataset(torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(2)))
    everything, held = hold_out(data, None, 7)
    small, held_again = hold_out(data, 5, 7)
    assert held.digest() == held_again.digest()
    assert len(everything) == 33
    rows = {image.numpy().tobytes() for image in everything.images}
    assert {image.numpy().tobytes() for image in small.images} < rows
    assert not rows & {image.numpy().tobytes() for image in held.images}


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (25, 6, "25 .* 6 .* 31, .* only 30"),
        (None, 30, "1 .* 30 .* 31, .* only 30"),
        (0, 6, "at least 1"),
        (5, 0, "at least 1"),
    ],
)
def test_hold_out_refuses(train, val, message):
    with pytest.raises(InputError, match=message):
        hold_out(dataset([0, 1, 2] * 10), train, val)


def test_channels_of_images_out_of_files_are_converted_as_pillow_does(pictures):
    import numpy as np
    from PIL import Image

    arrays = pictures(300, 5, 4)
    images = torch.from_numpy(arrays.transpose(0, 3, 1, 2).copy())
    names = tuple(map(str, range(300)))
    coloured = Dataset(images, torch.zeros(300, dtype=torch.int64), ("a",), "x", "test", names=names)
    grey = coloured.with_channels(1)
    expected = [np.asarray(Image.fromarray(array).convert("L")) for array in arrays]
    assert np.array_equal(grey.images[:, 0].numpy(), np.stack(expected))
    assert torch.equal(grey.with_channels(3).images, grey.images.repeat(1, 3, 1, 1))
    assert coloured.with_channels(3) is coloured
    assert coloured.with_channels(4) is coloured
    made = replace(coloured, names=())
    assert made.with_channels(1) is made
    assert coloured.subset([3, 1]).names == ("3", "1")
