"""Street View House Numbers, cropped digits, read by torchvision."""

from __future__ import annotations

from pathlib import Path

import torch

from coprobe.data.catalog import DATASETS, RawDataset
from coprobe.data.download import Download, ensure
from coprobe.errors import InputError


@DATASETS.register(
    "svhn",
    summary="99 289 colour images 32×32 of house number digits",
    source="Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning, 2011",
)
def svhn(root: Path, split: str) -> RawDataset:
    """SVHN from `train_32x32.mat` or `test_32x32.mat` in the data folder."""
    from torchvision.datasets import SVHN

    url, filename, md5 = SVHN.split_list[split]
    file = ensure("svhn", root, Download(url, md5, filename))
    try:
        read = SVHN(root, split=split)
    except (RuntimeError, OSError):
        raise InputError(
            f"{file}: not the published file (its checksum differs); delete it and it will be downloaded again"
        ) from None
    images = torch.from_numpy(read.data)
    return RawDataset(torch.from_numpy(read.labels), tuple("0123456789"), images)
