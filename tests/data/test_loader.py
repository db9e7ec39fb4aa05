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


def whole(loader):
    """One epoch as three tensors."""
    return tuple(torch.cat(parts) for parts in zip(*loader, strict=True))


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("channels_last", [False, True])
def test_plain_batches_are_the_data_in_order(channels_last):
    data = dataset()
    batches = list(Loader(data, 10, channels_last=channels_last))
    assert [len(batch.labels) for batch in batches] == [10, 10, 3]
    images, labels, indices = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert images.dtype == torch.float32
    assert torch.equal(images, data.images / 255)
    assert torch.equal(labels, data.labels)
    assert indices.tolist() == list(range(23))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert all(batch.images.is_contiguous(memory_format=layout) for batch in batches)


@pytest.mark.parametrize(("drop_last", "batches"), [(False, 3), (True, 2)])
def test_length(drop_last, batches):
    loader = Loader(dataset(), 10, drop_last=drop_last)
    assert len(loader) == len(list(loader)) == batches


def test_drop_last_of_less_than_a_batch():
    assert list(Loader(dataset(), 24, drop_last=True)) == []


def test_shuffle_is_a_permutation_and_indices_say_which():
    data = dataset()
    images, labels, indices = whole(Loader(data, 10, shuffle=True))
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
    images, _, indices = whole(loader)
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
    assert next(iter(loader)).images.is_contiguous(memory_format=layout)


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
    epochs = [whole(first) for _ in range(3)]
    assert first.epoch == 3
    assert not any(torch.equal(a[2], b[2]) for a, b in itertools.combinations(epochs, 2))
    assert all(same(epoch, whole(again)) for epoch in epochs)


def test_resuming_gives_the_same_batches():
    loader = Loader(dataset(), 10, shuffle=True, augment=True, padding=2, seed=5)
    epochs = [whole(loader) for _ in range(3)]
    resumed = Loader(dataset(), 10, shuffle=True, augment=True, padding=2, seed=5)
    resumed.set_epoch(2)
    assert same(whole(resumed), epochs[2])


def test_draws_ignore_the_batch_size_and_global_state():
    small, large = (Loader(dataset(), size, shuffle=True, augment=True, padding=2) for size in (4, 23))
    expected = whole(small)
    torch.manual_seed(99)
    assert same(whole(large), expected)


def test_abandoned_epoch_counts_from_iter():
    loader = Loader(dataset(), 10, shuffle=True)
    next(iter(loader))
    assert loader.epoch == 1
    iter(loader)
    assert loader.epoch == 2


def test_seeds_and_epochs_do_not_trade_places():
    def order(seed, epoch):
        loader = Loader(dataset(), 10, shuffle=True, seed=seed)
        loader.set_epoch(epoch)
        return whole(loader)[2].tolist()

    orders = [order(seed, epoch) for seed, epoch in itertools.product(range(3), range(3))]
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
