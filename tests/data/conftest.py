"""Tiny data sets in the formats in which the real ones come, and no way out to the network."""

import hashlib
import io
import json
import pickle
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import torchvision.datasets
from PIL import Image


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    urlopen = urllib.request.urlopen

    def refuse(request, timeout):
        if urllib.parse.urlsplit(request.full_url).hostname == "127.0.0.1":
            return urlopen(request, timeout=timeout)
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.fixture
def pictures():
    """A function: n different random images, uint8, n × height × width × 3."""

    def make(n, height=8, width=8, seed=0):
        return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)

    return make


@pytest.fixture
def encode():
    """A function: an array as the bytes of an image file."""

    def make(array, kind="PNG"):
        file = io.BytesIO()
        Image.fromarray(array).save(file, kind)
        return file.getvalue()

    return make


@pytest.fixture
def write_parquet(encode):
    """A function: images and labels as a Parquet file in the Hub's layout, in row groups of four."""

    def write(path, images, labels, *, names=None, image="img", label="label", groups=4):
        encoded = [item if isinstance(item, bytes) or item is None else encode(item) for item in images]
        structs = [{"bytes": item, "path": None} for item in encoded]
        image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table({image: pa.array(structs, image_type), label: labels})
        if names:
            features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
            metadata = {"huggingface": json.dumps({"info": {"features": features}})}
            table = table.replace_schema_metadata(metadata)
        pq.write_table(table, path, row_group_size=groups)
        return path

    return write


@pytest.fixture
def write_folder(encode):
    """A function: a dict from relative path to array or bytes, written below a folder."""

    def write(root, files):
        for name, item in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            kind = "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG"
            path.write_bytes(item if isinstance(item, bytes) else encode(item, kind))
        return root

    return write


def _md5(path):
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture
def cifar10_root(tmp_path, pictures, monkeypatch):
    """CIFAR-10's pickles with 4 images a file, and torchvision told their checksums."""
    root = tmp_path / "root"
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    kind = torchvision.datasets.CIFAR10
    files = [name for name, _ in kind.train_list + kind.test_list]
    for seed, name in enumerate(files):
        rows = pictures(4, 32, 32, seed).transpose(0, 3, 1, 2).reshape(4, -1)
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": [seed, 9, 0, 1]}))
    names = [f"thing{i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    sums = [[name, _md5(folder / name)] for name in files]
    monkeypatch.setattr(kind, "train_list", sums[:5])
    monkeypatch.setattr(kind, "test_list", sums[5:])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": _md5(folder / "batches.meta")})
    return root


@pytest.fixture
def cifar100_root(tmp_path, pictures, monkeypatch):
    root = tmp_path / "root"
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    kind = torchvision.datasets.CIFAR100
    for seed, name in enumerate(("train", "test")):
        rows = pictures(4, 32, 32, seed).transpose(0, 3, 1, 2).reshape(4, -1)
        batch = {"data": rows, "fine_labels": [99, 3, 0, seed], "coarse_labels": [1, 1, 1, 1]}
        (folder / name).write_bytes(pickle.dumps(batch))
    names = [f"fine{i}" for i in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    monkeypatch.setattr(kind, "train_list", [["train", _md5(folder / "train")]])
    monkeypatch.setattr(kind, "test_list", [["test", _md5(folder / "test")]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": _md5(folder / "meta")})
    return root


@pytest.fixture
def svhn_root(tmp_path, pictures, monkeypatch):
    root = tmp_path / "root"
    root.mkdir()
    known = {}
    for seed, split in enumerate(("train", "test")):
        path = root / f"{split}_32x32.mat"
        images = pictures(3, 32, 32, seed).transpose(1, 2, 3, 0)
        scipy.io.savemat(path, {"X": images, "y": np.array([[10], [seed + 1], [9]], dtype=np.uint8)})
        known[split] = [f"http://example.invalid/{path.name}", path.name, _md5(path)]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", known)
    return root


@pytest.fixture
def tiny_imagenet_root(tmp_path, pictures, write_folder):
    root = tmp_path / "root"
    train, val = pictures(4, 64, 64), pictures(3, 64, 64, 1)
    files = {f"train/{name}/images/{name}_{i}.JPEG": train[2 * c + i]
             for c, name in enumerate(("n01", "n02")) for i in range(2)}  # fmt: skip
    files |= {f"val/images/val_{i}.JPEG": val[i] for i in range(3)}
    files["train/n01/n01_boxes.txt"] = b"n01_0.JPEG\t0\t0\t62\t62\n"
    files["val/val_annotations.txt"] = b"".join(
        f"val_{i}.JPEG\t{name}\t0\t32\t44\t62\n".encode() for i, name in enumerate(("n02", "n01", "n02"))
    )
    write_folder(root / "tiny-imagenet-200", files)
    return root
