"""Images that a person has in Python, in every form they come in: the same data set, or a sentence that helps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from coprobe.data import Dataset, Loader, as_dataset, numbered
from coprobe.data.stream import stream
from coprobe.errors import InputError

GENERATOR = torch.Generator().manual_seed(0)
BYTES = torch.randint(0, 256, (7, 3, 4, 5), dtype=torch.uint8, generator=GENERATOR)
FLOATS = BYTES.float() / 255
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 1])
PAIRS = list(zip(FLOATS, LABELS.tolist(), strict=True))


class Items(TorchDataset):
    """Map-style; a length is all that torch asks for."""

    def __init__(self, make: Callable[[int], Any], count: int = 7) -> None:
        self.make, self.count = make, count

    def __getitem__(self, number: int) -> Any:
        return self.make(number)

    def __len__(self) -> int:
        return self.count


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        return iter(PAIRS)


class Tagged(Tensor):
    """A subclass, as torchvision and fastai have them."""


def pil(number: int) -> tuple[Image.Image, int]:
    return Image.fromarray(BYTES[number].permute(1, 2, 0).numpy()), int(LABELS[number])


FORMS: dict[str, Any] = {
    "bytes": (BYTES, LABELS),
    "floats": (FLOATS, LABELS),
    "arrays": (FLOATS.numpy(), LABELS.numpy()),
    "double arrays": (BYTES.numpy() / 255.0, LABELS.numpy().astype(np.uint8)),
    "big-endian": (FLOATS.numpy().astype(">f4"), LABELS.numpy().astype(">i2")),
    "a view": (FLOATS.numpy()[::-1][::-1], LABELS.numpy()),
    "channels-last in memory": (FLOATS.contiguous(memory_format=torch.channels_last), LABELS),
    "with a graph": (FLOATS.clone().requires_grad_(), LABELS),
    "a subclass": (FLOATS.as_subclass(Tagged), LABELS.as_subclass(Tagged)),
    "a list of labels": (FLOATS, LABELS.tolist()),
    "a column of labels": (FLOATS, LABELS[:, None].int()),
    "TensorDataset": TensorDataset(FLOATS, LABELS),
    "Subset": Subset(TensorDataset(FLOATS.flip(0), LABELS.flip(0)), range(6, -1, -1)),
    "PIL": Items(pil),
    "labels as tensors": Items(lambda k: (FLOATS[k], LABELS[k])),
    "more than pairs": Items(lambda k: (BYTES[k], LABELS[k], k)),
    "a list of pairs": PAIRS,
    "batches": DataLoader(TensorDataset(FLOATS, LABELS), batch_size=3),
    "single images": DataLoader(TensorDataset(FLOATS, LABELS), batch_size=None),
    "iterable": Stream(),
    "a loader of it": DataLoader(Stream(), batch_size=2),
    "a generator": lambda: (pair for pair in PAIRS),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_images_are_the_same_data_set_in_whatever_form_they_come(form: str) -> None:
    given = FORMS[form]
    found = as_dataset(given() if callable(given) else given)
    assert found.images.dtype == torch.uint8 and torch.equal(found.images, BYTES)
    assert torch.equal(found.labels, LABELS) and found.labels.dtype == torch.int64
    assert type(found.images) is type(found.labels) is Tensor
    assert (found.classes, found.split, found.notes) == (("0", "1", "2"), "given", ())
    assert found.digest() == Dataset(BYTES, LABELS, ("0", "1", "2"), "made", "test").digest()


def test_floats_that_are_no_bytes_are_kept_exactly() -> None:
    between = FLOATS.clone()
    between[3, 1, 2, 2] = 0.5  # lies between 127/255 and 128/255
    found = as_dataset((between, LABELS))
    assert found.images.dtype == torch.float32 and torch.equal(found.images, between)
    assert found.digest() != as_dataset((FLOATS, LABELS)).digest()
    one_by_one = as_dataset(TensorDataset(between, LABELS))
    assert torch.equal(one_by_one.images, between) and one_by_one.digest() == found.digest()
    moved = between.clone()
    moved[3, 1, 2, 2] += 1e-7
    assert as_dataset((moved, LABELS)).digest() != found.digest()
    (batch,) = stream(found, [(0, 7)])
    assert torch.equal(batch.images, between)
    (trained,) = Loader(found, 7).batches()
    assert torch.equal(trained.images, between)
    padded = next(Loader(found, 7, augment=True, padding=0, flip=False).batches())
    assert torch.equal(padded.images, between)


@pytest.mark.parametrize("given", [(FLOATS * 0.9, LABELS), (BYTES, LABELS)])
def test_what_becomes_of_the_images_later_changes_nothing(given: tuple[Tensor, Tensor]) -> None:
    images, labels = (part.clone() for part in given)
    found = as_dataset((images, labels))
    images.zero_()
    labels.zero_()
    assert found.images.any() and torch.equal(found.labels, LABELS)
    (batch,) = stream(found, [(0, 7)])
    batch.images.zero_()  # as a network that works in place may
    assert found.images.any()


def test_classes_and_split_are_those_that_the_data_name() -> None:
    named = Items(lambda k: PAIRS[k])
    named.classes, named.train = ["cat", ("dog", "hound"), "owl"], False  # type: ignore[attr-defined]
    for given in (named, Subset(named, range(7)), DataLoader(named, batch_size=4)):
        found = as_dataset(given)
        assert (found.classes, found.split) == (("cat", "dog, hound", "owl"), "test")
        assert numbered(found, 10) is found
    assert as_dataset(DataLoader(Subset(named, range(7)))).name == "DataLoader of Subset of Items"
    assert numbered(as_dataset((FLOATS, LABELS)), 10).num_classes == 10
    with pytest.raises(
        InputError, match=r"^\(x, y\) \(given\): row 2 has label 2; with 2 classes labels go from 0 to 1"
    ):
        numbered(as_dataset((FLOATS, LABELS)), 2)


def test_a_limit_is_balanced_where_labels_are_known_and_reads_no_more_than_it_must() -> None:
    asked: list[int] = []
    sorted_ = Items(lambda k: (asked.append(k), (BYTES[k], k // 4))[1], 8)
    sorted_.make = lambda k: (asked.append(k), (BYTES[k % 7], k // 4))[1]
    sorted_.targets = [k // 4 for k in range(8)]  # type: ignore[attr-defined]
    assert as_dataset(sorted_, limit=4).labels.tolist() == [0, 0, 1, 1]
    assert sorted(set(asked)) == [0, 1, 4, 5]
    assert as_dataset((BYTES, LABELS), limit=3).labels.tolist() == [0, 1, 2]
    assert as_dataset(Dataset(BYTES, LABELS, ("a", "b", "c"), "n", "test"), limit=3).labels.tolist() == [0, 1, 2]
    endless = ((FLOATS[:2], LABELS[:2]) for _ in iter(int, 1))
    assert torch.equal(as_dataset(endless, limit=3).images, BYTES[[0, 1, 0]])
    with pytest.raises(InputError, match="limit must be at least 1, not 0"):
        as_dataset((BYTES, LABELS), limit=0)


def test_what_is_doubtful_is_said() -> None:
    draws = iter(range(100))
    augmented = Items(lambda k: ((FLOATS[k] + next(draws)) % 1, 0))
    assert "another image each time it is asked" in as_dataset(augmented).notes[0]
    shuffled = DataLoader(TensorDataset(FLOATS, LABELS), shuffle=True)
    assert "another order; give shuffle=False" in as_dataset(shuffled).notes[0]
    (note,) = as_dataset(((BYTES > 99).byte(), LABELS)).notes
    assert "largest pixel is 1 of 255" in note and "give floats" in note
    (note,) = as_dataset((FLOATS / 255, LABELS)).notes
    assert "divided by 255 twice" in note


REFUSED: dict[str, tuple[Any, str]] = {
    "NHWC": ((FLOATS.permute(0, 3, 2, 1), LABELS), r"7×5×4×3, as if channels were last; .* x.permute\(0, 3, 1, 2\)"),
    "NHWC array": ((BYTES.numpy().transpose(0, 2, 3, 1).repeat(2, 1), LABELS), r"x.transpose\(0, 3, 1, 2\)"),
    "no channels": ((FLOATS[:, 0], LABELS), r"7×4×5, without channels; .* x\[:, None\]"),
    "flat": ((FLOATS.flatten(1), LABELS), "7×60, not N×C×H×W"),
    "255": ((BYTES.float(), LABELS), r"go from 0 to 255 .* divide them by 255, or give uint8"),
    "normalised": (((FLOATS - 0.5) / 0.2, LABELS), r"go from -2.5 to 2.5 .* the model preprocess=\(mean, std\)"),
    "a hair outside": ((FLOATS * 1.02, LABELS), r"go from 0 to 1.02 .* clip them with x.clip\(0, 1\)"),
    "NaN": ((torch.where(torch.arange(7)[:, None, None, None] == 4, torch.nan, FLOATS), LABELS), "image 4 has values"),
    "whole numbers": ((BYTES.long(), LABELS), "images are int64; give uint8 from 0 to 255, or float from 0 to 1"),
    "truth values": ((BYTES > 9, LABELS), "images are bool"),
    "no labels": (FLOATS, "a Tensor holds no images with labels; give images with labels"),
    "a dictionary": ({"x": FLOATS}, "a dict holds no images with labels"),
    "a folder": (Path("photos"), "a folder is named as 'folder:photos'"),
    "a number": (3, "a int holds no images"),
    "lists": (([[0.5]], LABELS), "item 0 is a list, no pair"),
    "too few labels": ((FLOATS, LABELS[:5]), "7 images and 5 labels; give one label per image"),
    "one-hot": ((FLOATS, torch.eye(7)), r"labels are of shape 7×7; .* argmax\(1\)"),
    "float labels": ((FLOATS, LABELS.float()), "labels are float32; give whole numbers"),
    "words": ((FLOATS, ["cat"] * 7), "labels are <U3; give whole numbers"),
    "negative": ((FLOATS, LABELS - 1), "row 0 has label -1"),
    "none": ((FLOATS[:0], LABELS[:0]), "holds no images"),
    "no items": (Items(pil, 0), "holds no images"),
    "used up": (iter(()), "an iterator that was used up has none"),
    "dictionaries": (Items(lambda k: {"image": FLOATS[k], "label": 0}), r"item 0 is a dictionary \(image, label\)"),
    "images alone": (DataLoader(FLOATS, batch_size=4), "item 0 is a Tensor, no pair of an image and its label"),
    "several sizes": (Items(lambda k: (FLOATS[k, :, : 4 - k % 2], 0)), r"several sizes \(3×4×5 and 3×3×5\); .* Resize"),
    "16 bits": ([(Image.new("I;16", (4, 4)), 0)] * 3, r"image 0 is of more than 8 bits \(mode I;16\); give floats"),
    "no image": (Items(lambda k: ("cat.png", 0)), "image 0 is a str; give tensors"),
    "meta": ((FLOATS.to("meta"), LABELS), "meta device holds no numbers"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what: str) -> None:
    given, message = REFUSED[what]
    with pytest.raises(InputError, match=message) as caught:
        as_dataset(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("P", 3), ("RGBA", 3), ("1", 1)])
def test_pictures_of_every_mode(mode: str, channels: int) -> None:
    picture = Image.fromarray(BYTES[0].permute(1, 2, 0).numpy()).convert(mode)
    found = as_dataset([(picture, 0)] * 3)
    assert found.image_shape == (channels, 4, 5)
    wanted = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    assert np.array_equal(found.images[0].numpy().transpose(1, 2, 0).squeeze(), wanted)
