"""Imagenette in the layout in which fastai publishes it."""

from __future__ import annotations

from pathlib import Path

import torch

from coprobe.data.bounds import cause
from coprobe.data.catalog import DATASETS, RawDataset
from coprobe.data.download import Download, ensure
from coprobe.data.folder import ImageFiles, class_folders, list_images
from coprobe.errors import InputError


@DATASETS.register(
    "imagenette",
    summary="13 394 colour images of several sizes of 10 ImageNet classes; wants `--image-size`",
    source="Howard, Imagenette, 2019",
)
def imagenette(root: Path, split: str) -> RawDataset:
    """Imagenette from `imagenette2`, `imagenette2-320` or `imagenette2-160` in the data folder.

    The first of them that is there is read; if none is, the second is downloaded. The test split is its `val`.
    """
    from torchvision.datasets import Imagenette

    archives = {Path(url).stem: Download(url, md5, Path(url).stem) for url, md5 in Imagenette._ARCHIVES.values()}
    name = next((name for name in archives if (root / name).exists()), "imagenette2-320")
    folder = ensure("imagenette", root, archives[name]) / ("train" if split == "train" else "val")
    try:
        wordnet_ids = class_folders(folder)
        classes = tuple(Imagenette._WNID_TO_CLASS[wordnet_id][0] for wordnet_id in wordnet_ids)
        numbers = {wordnet_id: number for number, wordnet_id in enumerate(wordnet_ids)}
        samples = list_images(folder, numbers, (".jpeg",))
    except (OSError, KeyError) as error:
        raise InputError(
            f"{folder}: not the published layout ({cause(error)}); delete it and it will be downloaded again"
        ) from None
    labels = torch.tensor([label for _, label in samples], dtype=torch.int64)
    return RawDataset(labels, classes, ImageFiles([path for path, _ in samples]), (f"read from {name}",))
