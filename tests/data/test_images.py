import numpy as np
import pytest
import torch

from coprobe.data import balanced_prefix
from coprobe.data.images import decode_images
from coprobe.errors import InputError

CLASSES = ("cat", "dog", "eel")


class Encoded:
    """Encoded images from a function of their rows."""

    def __init__(self, read):
        self.read = read


@pytest.fixture
def collect(pictures, encode):
    """A function: decode from as many pictures as there are labels, of which some are bad; with the rows read."""
    images = pictures(30)

    def run(labels, bad=(), limit=None, skip_bad=False):
        read = []

        def encoded(chosen):
            for row in chosen.tolist():
                read.append(row)
                yield (b"<html>" if row in bad else encode(images[row])), f"dir/{row}.png"

        options = {"limit": limit, "skip_bad": skip_bad}
        found = decode_images(Encoded(encoded), torch.tensor(labels), CLASSES, "made", **options)
        assert found.names == tuple(f"dir/{row}.png" for row in found.rows.tolist())
        assert np.array_equal(found.images.numpy(), images[found.rows.numpy()].transpose(0, 3, 1, 2))
        return found, read

    return run


def test_all_and_a_prefix(collect):
    labels = [0, 0, 1, 1, 2]
    found, read = collect(labels)
    assert (found.rows.tolist(), read, found.skipped) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], ())
    found, read = collect(labels, limit=3)
    assert found.rows.tolist() == read == [0, 2, 4]


def test_one_bad_image_is_named(collect):
    with pytest.raises(
        InputError, match=r"^dir/1\.png: not an image \(.*\); replace or remove it, or pass --skip-bad$"
    ):
        collect([0, 1, 0], bad=[1])


def test_several_are_counted_and_the_first_named(collect):
    with pytest.raises(InputError) as caught:
        collect([0, 1, 0, 1, 0, 1, 0], bad=[1, 2, 4, 5])
    assert str(caught.value) == (
        "dir/1.png: not an image (JPEG, PNG, WEBP, BMP, TIFF, PPM); 4 of 7 images are bad (also 2.png, 4.png, …); "
        "replace or remove them, or pass --skip-bad"
    )


@pytest.mark.parametrize("limit", [None, 1, 2, 3, 4, 6, 9, 11, 20])
def test_what_is_left_is_the_set_without_the_bad_ones(limit, collect):
    labels = [0, 1, 2] * 6
    bad = [0, 3, 4, 9, 17]
    found, read = collect(labels, bad, limit, skip_bad=True)
    good = torch.tensor([row for row in range(18) if row not in bad])
    wanted = good if limit is None else good[balanced_prefix(torch.tensor(labels)[good], limit)]
    assert found.rows.tolist() == wanted.tolist()
    assert len(read) == len(set(read))
    assert set(found.skipped) == {f"dir/{row}.png" for row in bad if row in read}


def test_a_small_class_that_shrinks_is_made_up_for_by_the_others(collect):
    found, _ = collect([0, 1, 0, 1, 1, 1], bad=[2], limit=4, skip_bad=True)
    assert found.rows.tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize("limit", [None, 2, 4])
def test_a_class_with_only_bad_images(limit, collect):
    message = r"made: all 2 images of the class 'dog' are bad \(1\.png: not an image .*\); replace them"
    with pytest.raises(InputError, match=message):
        collect([0, 1, 0, 1, 0], bad=[0, 1, 3], limit=limit, skip_bad=True)


def test_only_bad_images(collect):
    with pytest.raises(InputError, match=r"made: all 3 images are bad \(0\.png: not an image"):
        collect([0, 1, 0], bad=[0, 1, 2], skip_bad=True)


@pytest.mark.parametrize("skip_bad", [False, True])
def test_another_size_is_an_error_that_names_both(skip_bad, pictures, encode):
    items = [(encode(pictures(1, 5, 7)[0]), "one"), (encode(pictures(1, 7, 5)[0]), "two")]
    with pytest.raises(InputError, match="two: 5×7 pixels, but one has 7×5"):
        encoded = Encoded(lambda rows: iter(items))
        decode_images(encoded, torch.tensor([0, 0]), CLASSES, "made", limit=None, skip_bad=skip_bad)


def test_more_than_the_memory_is_refused(collect, monkeypatch):
    sysconf = {"SC_PHYS_PAGES": 1, "SC_PAGE_SIZE": 500}
    monkeypatch.setattr("coprobe.data.bounds.os.sysconf", sysconf.__getitem__)
    assert len(collect([0, 1])[0].rows) == 2  # 2 × 192 bytes
    with pytest.raises(InputError, match=r"made: the decoded images need .* GB, .*; lower --limit"):
        collect([0, 1, 0])


@pytest.mark.parametrize("coloured", [(), (0,), (2,), (1, 3), (0, 1, 2, 3)])
def test_one_channel_where_all_images_have_one(coloured, pictures, encode):
    images = pictures(4)
    stored = [images[row] if row in coloured else images[row, :, :, 0] for row in range(4)]
    encoded = Encoded(lambda rows: ((encode(stored[row]), str(row)) for row in rows.tolist()))
    found = decode_images(encoded, torch.tensor([0, 1, 0, 1]), CLASSES, "made", limit=None, skip_bad=False).images
    if not coloured:
        assert np.array_equal(found.numpy(), images[:, None, :, :, 0])
        return
    for row in range(4):
        expected = images[row] if row in coloured else images[row, :, :, :1].repeat(3, 2)
        assert np.array_equal(found[row].numpy(), expected.transpose(2, 0, 1))
