"""CIFAR-10 and CIFAR-100 in the Python version that their authors publish, read by torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from coprobe.data.catalog import DATASETS, RawDataset
from coprobe.data.download import Download, ensure
from coprobe.errors import InputError


@DATASETS.register(
    "cifar10",
    summary="60 000 colour images 32×32 of 10 classes of things and animals",
    source="Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
)
def cifar10(root: Path, split: str) -> RawDataset:
    """CIFAR-10 from `cifar-10-batches-py` in the data folder."""
    from torchvision.datasets import CIFAR10

    return _read("cifar10", CIFAR10, root, split)


@DATASETS.register(
    "cifar100",
    summary="60 000 colour images 32×32 of 100 classes (the fine labels)",
    source="Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
)
def cifar100(root: Path, split: str) -> RawDataset:
    """CIFAR-100 from `cifar-100-python` in the data folder."""
    from torchvision.datasets import CIFAR100

    return _read("cifar100", CIFAR100, root, split)


def _read(name: str, kind: Any, root: Path, split: str) -> RawDataset:
    folder = ensure(name, root, Download(kind.url, kind.tgz_md5, kind.base_folder))
    try:
        # The files are pickles: torchvision compares the MD5 of each with the published one before it opens any.
        read = kind(root, train=split == "train")
    except (RuntimeError, OSError):
        raise InputError(
            f"{folder}: incomplete, or not the published files (their checksums differ); "
            "delete it and it will be downloaded again"
        ) from None
    images = torch.from_numpy(np.ascontiguousarray(read.data.transpose(0, 3, 1, 2)))
    return RawDataset(torch.tensor(read.targets), tuple(read.classes), images)
