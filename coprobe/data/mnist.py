"""MNIST and two data sets in its format, read by torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coprobe.data.bounds import cause
from coprobe.data.catalog import DATASETS, RawDataset
from coprobe.data.download import Download, ensure
from coprobe.errors import InputError

# What torchvision's functions raise on files that are damaged, or are something else.
_DAMAGE = (AssertionError, ValueError, TypeError, LookupError, RuntimeError, OSError)


@DATASETS.register(
    "mnist",
    summary="70 000 grey images 28×28 of handwritten digits",
    source="LeCun, Cortes and Burges, The MNIST Database of Handwritten Digits, 1998",
)
def mnist(root: Path, split: str) -> RawDataset:
    """MNIST from `MNIST/raw` in the data folder."""
    from torchvision.datasets import MNIST

    return _read("mnist", MNIST, root, split)


@DATASETS.register(
    "fashion-mnist",
    summary="70 000 grey images 28×28 of clothes",
    source="Xiao, Rasul and Vollgraf, Fashion-MNIST, 2017",
)
def fashion_mnist(root: Path, split: str) -> RawDataset:
    """Fashion-MNIST from `FashionMNIST/raw` in the data folder."""
    from torchvision.datasets import FashionMNIST

    return _read("fashion-mnist", FashionMNIST, root, split)


@DATASETS.register(
    "kmnist",
    summary="70 000 grey images 28×28 of cursive Japanese characters",
    source="Clanuwat et al., Deep Learning for Classical Japanese Literature, 2018",
)
def kmnist(root: Path, split: str) -> RawDataset:
    """Kuzushiji-MNIST from `KMNIST/raw` in the data folder."""
    from torchvision.datasets import KMNIST

    return _read("kmnist", KMNIST, root, split)


def _read(name: str, kind: Any, root: Path, split: str) -> RawDataset:
    from torchvision.datasets.mnist import read_image_file, read_label_file

    raw = f"{kind.__name__}/raw"
    begins = "train" if split == "train" else "t10k"
    images_file, labels_file = (
        ensure(name, root, Download(f"{kind.mirrors[0]}{file}", md5, f"{raw}/{file.removesuffix('.gz')}"))
        for file, md5 in kind.resources
        if file.startswith(begins)
    )
    try:
        images, labels = read_image_file(str(images_file)), read_label_file(str(labels_file))
    except _DAMAGE as error:
        raise InputError(
            f"{root / raw}: damaged or not the published files ({cause(error)}); delete it and it will be downloaded "
            "again"
        ) from None
    if len(images) != len(labels):
        raise InputError(f"{root / raw}: {len(images)} images and {len(labels)} labels; delete it and it will be "
                         "downloaded again")  # fmt: skip
    return RawDataset(labels, tuple(kind.classes), images.unsqueeze(1))
