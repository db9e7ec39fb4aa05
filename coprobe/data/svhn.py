"""Street View House Numbers, cropped digits, read by torchvision."""

from __future__ import annotations

import torch

from coprobe.data.catalog import DATASETS, Request, Source
from coprobe.data.download import Download, ensure
from coprobe.errors import InputError


@DATASETS.register(
    "svhn",
    summary="99 289 colour images 32×32 of house number digits",
    source="Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning, 2011",
)
def svhn(request: Request) -> Source:
    """SVHN from `train_32x32.mat` or `test_32x32.mat` in the data folder."""
    from torchvision.datasets import SVHN

    url, filename, md5 = SVHN.split_list[request.split]
    file = ensure("svhn", request.root, Download(url, md5, filename))
    try:
        read = SVHN(request.root, split=request.split)
    except (RuntimeError, OSError):
        raise InputError(
            f"{file}: not the published file (its checksum differs); delete it and it will be downloaded again"
        ) from None
    images = torch.from_numpy(read.data)
    return Source(torch.from_numpy(read.labels), tuple("0123456789"), images)
