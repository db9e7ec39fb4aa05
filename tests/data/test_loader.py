import itertools

import numpy as np
import pytest
import torch

from coprobe.data import Dataset, Loader, draw_augmentation
from coprobe.errors import InputError


def dataset(count=23, channels=3, height=6, width=5):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 4, (count,), generator=generator)
    return Dataset(images, labels, tuple("abcd"), "made", "train")


def together(batches):
    """Images, labels and indices of all batches."""
    batches = list(batches)
    return tuple(torch.cat([getattr(batch, name) for batch in batches]) for name in ("images", "labels", "indices"))


def epoch(loader, number=0):
    """One epoch as three tensors."""
    return together(loader.batches(number))


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("channels_last", [False, True])
def test_plain_batches_are_the_data_in_order(channels_last):
    data = dataset()
    batches = list(Loader(data, 10, channels_last=channels_last).batches())
    assert [len(batch.labels) for batch in batches] == [10, 10, 3]
    images, labels, indices = together(batches)
    assert images.dtype == torch.float32
    assert torch.equal(images, data.images / 255)
    assert torch.equal(labels, data.labels)
    assert indices.tolist() == list(range(23))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert all(batch.images.is_contiguous(memory_format=layout) for batch in batches)


@pytest.mark.parametrize(("drop_last", "batches"), [(False, 3), (True, 2)])
def test_length(drop_last, batches):
    loader = Loader(dataset(), 10, drop_last=drop_last)
    assert len(loader) == len(list(loader.batches())) == batches


def test_drop_last_of_less_than_a_batch():
    assert list(Loader(dataset(), 24, drop_last=True).batches()) == []


def test_shuffle_is_a_permutation_and_indices_say_which():
    data = dataset()
    images, labels, indices = epoch(Loader(data, 10, shuffle=True))
    assert sorted(indices.tolist()) == list(range(23))
    assert indices.tolist() != list(range(23))
    assert torch.equal(images, data.images[indices] / 255)
    assert torch.equal(labels, data.labels[indices])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("mode", ["zero", "reflect"])
@pytest.mark.parametrize(("padding", "flip"), [(2, True), (3, False), (0, True)])
def test_augmentation_matches_one_image_at_a_time(padding, flip, mode, channels_last, monkeypatch):
    drawn = []

    def recorded(*args):
        drawn.append(draw_augmentation(*args))
        return drawn[-1]

    monkeypatch.setattr("coprobe.data.loader.draw_augmentation", recorded)
    data = dataset()
    loader = Loader(
        data, 10, shuffle=True, augment=True, flip=flip, padding=padding, padding_mode=mode,
        channels_last=channels_last,
    )  # fmt: skip
    images, _, indices = epoch(loader)
    offsets, mirrored = drawn[0]
    _, height, width = data.image_shape
    edge = [(0, 0), (padding, padding), (padding, padding)]
    for position, index in enumerate(indices.tolist()):
        padded = np.pad(data.images[index].numpy(), edge, mode="constant" if mode == "zero" else "reflect")
        top, left = offsets[position].tolist()
        crop = padded[:, top : top + height, left : left + width]
        if mirrored[position]:
            crop = crop[:, :, ::-1]
        assert np.array_equal(images[position].numpy(), crop.astype(np.float32) / 255)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert next(loader.batches()).images.is_contiguous(memory_format=layout)


def test_draws_cover_their_range_evenly():
    offsets, mirrored = draw_augmentation(9000, 4, True, torch.Generator().manual_seed(0))
    assert offsets.shape == (9000, 2)
    counts = torch.stack([offsets[:, axis].bincount(minlength=9) for axis in range(2)])
    assert counts.shape == (2, 9)
    assert ((counts - 1000).abs() < 150).all()  # five standard deviations
    assert abs(int(mirrored.sum()) - 4500) < 240
    assert not draw_augmentation(100, 4, False, torch.Generator())[1].any()


def test_epochs_differ_and_repeat():
    first, again = (Loader(dataset(), 10, shuffle=True, augment=True, padding=2) for _ in range(2))
    epochs = [epoch(first, number) for number in range(3)]
    assert not any(torch.equal(a[2], b[2]) for a, b in itertools.combinations(epochs, 2))
    assert all(same(epochs[number], epoch(again, number)) for number in (2, 0, 1))


def test_an_epoch_can_be_taken_up_at_any_batch():
    loader = Loader(dataset(), 10, shuffle=True, augment=True, padding=2, seed=5)
    batches = list(loader.batches(2))
    for first in range(4):
        rest = list(loader.batches(2, first))
        assert len(rest) == 3 - first
        assert all(torch.equal(a.images, b.images) for a, b in zip(rest, batches[first:], strict=True))


def test_draws_ignore_the_batch_size_and_global_state():
    small, large = (Loader(dataset(), size, shuffle=True, augment=True, padding=2) for size in (4, 23))
    expected = epoch(small)
    torch.manual_seed(99)
    assert same(epoch(large), expected)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_every_batch(processes):
    options = {"shuffle": True, "augment": True, "padding": 2}
    alone = list(Loader(dataset(), 7, **options).batches(1))
    parts = [list(Loader(dataset(), 7, **options, part=(rank, processes)).batches(1)) for rank in range(processes)]
    assert [len(each) for each in parts] == [4 - (processes == 3)] * processes  # 23 = 3 · 7 + 2
    for number, (batch, shares) in enumerate(zip(alone, zip(*parts, strict=True), strict=False)):
        assert same(together(shares), (batch.images, batch.labels, batch.indices)), number
        for share in shares:
            assert torch.equal(share.whole, batch.indices)
            assert torch.equal(share.whole[share.part], share.indices)
            assert share.fraction == len(share.labels) / len(batch.labels)
            assert torch.equal(share.offsets, batch.offsets[share.part])
            assert torch.equal(share.mirrored, batch.mirrored[share.part])
        sizes = [len(share.labels) for share in shares]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("processes", [1, 3])
def test_images_of_an_epoch(processes):
    loader = Loader(dataset(), 7, part=(0, processes))
    seen = sum(len(batch.whole) for batch in loader.batches())
    assert loader.images == seen == (23 if processes == 1 else 21)


def test_seeds_and_epochs_do_not_trade_places():
    def order(seed, number):
        return epoch(Loader(dataset(), 10, shuffle=True, seed=seed), number)[2].tolist()

    orders = [order(seed, number) for seed, number in itertools.product(range(3), range(3))]
    assert len({tuple(each) for each in orders}) == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "--batch-size must be at least 1, not 0"),
        ({"padding": -1}, "padding must be at least 0, not -1"),
        ({"padding": 5, "padding_mode": "reflect"}, "padding 5 can't be reflected .* 5 pixels; at most 4"),
        ({"padding_mode": "reflekt"}, "unknown padding mode 'reflekt'; did you mean reflect"),
        ({"seed": -1}, "--seed must be at least 0"),
    ],
)
def test_refused(options, message):
    with pytest.raises(InputError, match=message):
        Loader(dataset(), **{"batch_size": 10, "augment": True, **options})
