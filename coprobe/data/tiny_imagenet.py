"""Tiny ImageNet in the layout in which Stanford's CS231n publishes it."""

from __future__ import annotations

from pathlib import Path

import torch

from coprobe.data.bounds import cause
from coprobe.data.catalog import DATASETS, RawDataset
from coprobe.data.download import Download, ensure
from coprobe.data.folder import ImageFiles, class_folders, list_images
from coprobe.errors import InputError

ARCHIVE = Download(
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de", "tiny-imagenet-200"
)


@DATASETS.register(
    "tiny-imagenet",
    summary="110 000 colour images 64×64 of 200 ImageNet classes",
    source="Le and Yang, Tiny ImageNet Visual Recognition Challenge, 2015",
)
def tiny_imagenet(root: Path, split: str) -> RawDataset:
    """Tiny ImageNet from `tiny-imagenet-200` in the data folder; the classes are its WordNet ids, sorted.

    The test split is the published validation set: the labels of the published test set are not public.
    """
    folder = ensure("tiny-imagenet", root, ARCHIVE)
    try:
        classes, samples = _list(folder, split)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{folder}: not the published layout ({cause(error)}); delete it and it will be downloaded again"
        ) from None
    labels = torch.tensor([label for _, label in samples], dtype=torch.int64)
    paths = [path for path, _ in samples]
    return RawDataset(labels, classes, ImageFiles(paths))


def _list(folder: Path, split: str) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    classes = class_folders(folder / "train")
    numbers = {name: number for number, name in enumerate(classes)}
    if split == "train":
        return classes, list_images(folder / "train", numbers, (".jpeg",))
    samples = []
    for line in (folder / "val" / "val_annotations.txt").read_text("utf-8").splitlines():
        filename, wordnet_id, _ = line.split("\t", 2)
        if Path(filename).name != filename:
            raise ValueError(f"val_annotations.txt names {filename!r}")
        samples.append((folder / "val" / "images" / filename, numbers[wordnet_id]))
    return classes, samples
