"""Tiny ImageNet in the layout in which Stanford's CS231n publishes it."""

from __future__ import annotations

from pathlib import Path

import torch

from coprobe.data.catalog import DATASETS, Request, Source
from coprobe.data.decode import decode_all
from coprobe.data.download import Download, ensure
from coprobe.errors import InputError

ARCHIVE = Download(
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de", "tiny-imagenet-200"
)


@DATASETS.register(
    "tiny-imagenet",
    summary="110 000 colour images 64×64 of 200 ImageNet classes",
    source="Le and Yang, Tiny ImageNet Visual Recognition Challenge, 2015",
)
def tiny_imagenet(request: Request) -> Source:
    """Tiny ImageNet from `tiny-imagenet-200` in the data folder; the classes are its WordNet ids, sorted.

    The test split is the published validation set: the labels of the published test set are not public.
    """
    folder = ensure("tiny-imagenet", request.root, ARCHIVE)
    try:
        classes, samples = _list(folder, request.split)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{folder}: not the published layout ({error}); delete it and it will be downloaded again"
        ) from None
    labels = torch.tensor([label for _, label in samples], dtype=torch.int64)

    def images(chosen: torch.Tensor) -> torch.Tensor:
        paths = [samples[i][0] for i in chosen.tolist()]
        return decode_all(((path, str(path)) for path in paths), len(paths))

    return Source(labels, tuple(classes), images)


def _list(folder: Path, split: str) -> tuple[list[str], list[tuple[Path, int]]]:
    from torchvision.datasets.folder import find_classes, make_dataset

    classes, numbers = find_classes(folder / "train")
    if split == "train":
        listed = make_dataset(folder / "train", numbers, extensions=(".jpeg",))
        return classes, [(Path(path), label) for path, label in listed]
    samples = []
    for line in (folder / "val" / "val_annotations.txt").read_text("utf-8").splitlines():
        filename, wordnet_id, _ = line.split("\t", 2)
        if Path(filename).name != filename:
            raise ValueError(f"val_annotations.txt names {filename}")
        samples.append((folder / "val" / "images" / filename, numbers[wordnet_id]))
    return classes, samples
