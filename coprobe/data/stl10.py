"""STL-10, its labelled images, in the binary version that its authors publish."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from coprobe.data.catalog import DATASETS, RawDataset
from coprobe.data.download import Download, ensure
from coprobe.errors import InputError

_SIDE = 96


@DATASETS.register(
    "stl10",
    summary="13 000 colour images 96×96 of 10 classes of things and animals, 8000 of them for testing",
    source="Coates, Lee and Ng, An Analysis of Single-Layer Networks in Unsupervised Feature Learning, 2011",
)
def stl10(root: Path, split: str) -> RawDataset:
    """STL-10 from `stl10_binary` in the data folder, without the images that have no label."""
    from torchvision.datasets import STL10
    from torchvision.datasets.utils import check_integrity

    folder = ensure("stl10", root, Download(STL10.url, STL10.tgz_md5, STL10.base_folder))
    # Not by torchvision's class, which takes the MD5 of all files first, the 2.8 GB without labels among them.
    published = dict([*STL10.train_list, *STL10.test_list])
    names = f"{split}_X.bin", f"{split}_y.bin"
    if not all(check_integrity(str(folder / name), published[name]) for name in names):
        raise InputError(
            f"{folder}: incomplete, or not the published files (their checksums differ); "
            "delete it and it will be downloaded again"
        )
    pixels, labels = (np.frombuffer(bytearray((folder / name).read_bytes()), dtype=np.uint8) for name in names)
    by_columns = torch.from_numpy(pixels.reshape(-1, 3, _SIDE, _SIDE))
    classes = (folder / STL10.class_names_file).read_text("utf-8").split()
    return RawDataset(torch.from_numpy(labels).long() - 1, tuple(classes), by_columns.transpose(2, 3).contiguous())
