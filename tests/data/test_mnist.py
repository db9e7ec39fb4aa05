"""MNIST and its kin, STL-10 and Imagenette, in tiny files of the formats in which torchvision knows them."""

import gzip
import hashlib
import io

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from coprobe.data import load
from coprobe.data.archive import expand
from coprobe.errors import InputError

KINDS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}


def idx(array):
    """An array of bytes in the format of MNIST: a magic number, the sizes, the content."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


@pytest.fixture
def raw(tmp_path, pictures):
    """A function: the files of a data set of MNIST's kind, with 5 images each; returns the training and test images."""

    def write(name):
        folder = tmp_path / KINDS[name] / "raw"
        folder.mkdir(parents=True)
        found = {}
        for seed, (split, begins) in enumerate({"train": "train", "test": "t10k"}.items()):
            found[split] = pictures(5, 28, 28, seed)[:, :, :, 0].copy()
            (folder / f"{begins}-images-idx3-ubyte").write_bytes(idx(found[split]))
            (folder / f"{begins}-labels-idx1-ubyte").write_bytes(idx(np.array([seed, 9, 3, 1, 0], dtype=np.uint8)))
        return found

    return write


@pytest.mark.parametrize("name", KINDS)
def test_grey_images_of_one_channel(name, raw, tmp_path):
    written = raw(name)
    reference = getattr(torchvision.datasets, KINDS[name])
    for seed, split in enumerate(("train", "test")):
        data = load(name, split, root=tmp_path)
        assert data.image_shape == (1, 28, 28)
        assert np.array_equal(data.images[:, 0].numpy(), written[split])
        assert data.labels.tolist() == [seed, 9, 3, 1, 0]
        other = reference(tmp_path, train=split == "train")
        assert np.array_equal(data.images[:, 0].numpy(), other.data.numpy())
        assert data.classes == tuple(other.classes)


@pytest.mark.parametrize("content", [b"", b"<html>", idx(np.zeros((5, 28, 28), dtype=np.uint8))[:-1]])
def test_a_damaged_file(content, raw, tmp_path):
    raw("mnist")
    (tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(InputError, match=r"MNIST/raw: damaged or not the published files .*; delete it and it will be"):
        load("mnist", root=tmp_path)


def test_labels_of_other_images(raw, tmp_path):
    raw("mnist")
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(4, dtype=np.uint8)))
    with pytest.raises(InputError, match="5 images and 4 labels"):
        load("mnist", root=tmp_path)


def test_a_file_packed_by_gzip(tmp_path, monkeypatch):
    content = b"0123456789" * 20_000_000
    (tmp_path / "a.gz").write_bytes(gzip.compress(content[:1000]))
    expand(tmp_path / "a.gz", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == content[:1000]
    (tmp_path / "cut.gz").write_bytes(gzip.compress(content[:1000])[:-9])
    with pytest.raises(InputError, match=r"cut\.gz: damaged file"):
        expand(tmp_path / "cut.gz", tmp_path / "b")
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(content, 1))
    with pytest.raises(InputError, match=r"bomb\.gz: \d+ bytes that unpack to"):
        expand(tmp_path / "bomb.gz", tmp_path / "c")


@pytest.fixture
def stl10(tmp_path, pictures, monkeypatch):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    lists = {}
    for seed, split in enumerate(("train", "test")):
        by_columns = pictures(3, 96, 96, seed).transpose(0, 3, 2, 1)
        (folder / f"{split}_X.bin").write_bytes(by_columns.tobytes())
        (folder / f"{split}_y.bin").write_bytes(bytes([1, 10, 2]))
        names = f"{split}_X.bin", f"{split}_y.bin"
        lists[split] = [[n, hashlib.md5((folder / n).read_bytes(), usedforsecurity=False).hexdigest()] for n in names]
    (folder / "class_names.txt").write_text("\n".join(f"thing{i}" for i in range(10)))
    monkeypatch.setattr(torchvision.datasets.STL10, "train_list", [*lists["train"], ["unlabeled_X.bin", "0" * 32]])
    monkeypatch.setattr(torchvision.datasets.STL10, "test_list", lists["test"])
    return folder


def test_stl10(stl10, pictures):
    for seed, split in enumerate(("train", "test")):
        data = load("stl10", split, root=stl10.parent)
        assert np.array_equal(data.images.numpy(), pictures(3, 96, 96, seed).transpose(0, 3, 1, 2))
        assert data.labels.tolist() == [0, 9, 1]
        assert data.classes[9] == "thing9"
    (stl10 / "test_y.bin").write_bytes(bytes([1, 1, 1]))
    with pytest.raises(InputError, match="stl10_binary: incomplete, or not the published files"):
        load("stl10", root=stl10.parent)


@pytest.mark.parametrize("folder", ["imagenette2", "imagenette2-320", "imagenette2-160"])
def test_imagenette(folder, tmp_path, pictures, write_folder, encode):
    ids = sorted(torchvision.datasets.Imagenette._WNID_TO_CLASS)
    images = {
        f"{split}/{ids[k]}/{k}.JPEG": pictures(1, 20 + k, 30, k)[0] for k in range(10) for split in ("train", "val")
    }
    write_folder(tmp_path / folder, images)
    with pytest.raises(InputError, match="--image-size"):
        load("imagenette", root=tmp_path)
    data = load("imagenette", root=tmp_path, image_size="8")
    assert data.labels.tolist() == list(range(10))
    assert data.classes[:2] == ("tench", "English springer")
    assert f"imagenette (test): read from {folder}" in data.notes
    first = Image.open(io.BytesIO(encode(pictures(1, 20, 30, 0)[0], "JPEG")))
    expected = np.asarray(first.resize((12, 8), Image.Resampling.BILINEAR).crop((2, 0, 10, 8))).transpose(2, 0, 1)
    assert np.array_equal(data.images[0].numpy(), expected)


def test_another_layout_than_imagenettes(tmp_path, pictures, write_folder):
    write_folder(tmp_path / "imagenette2", {"val/cats/a.JPEG": pictures(1)[0]})
    with pytest.raises(InputError, match=r"imagenette2/val: not the published layout \('cats'\)"):
        load("imagenette", root=tmp_path)
