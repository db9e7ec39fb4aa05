"""A folder of image files, one sub-folder per class (torchvision's ImageFolder layout)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from coprobe.data.bounds import listed, short
from coprobe.data.catalog import DATASETS, RawDataset
from coprobe.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val", "valid", "validation")}


@DATASETS.register(
    "folder",
    summary="image files in DIR/{train,test}/CLASS/ (val for test will do), or in DIR/CLASS/ for either split",
    source="torchvision's ImageFolder",
    argument="DIR",
)
def folder(path: Path, split: str) -> RawDataset:
    """Images of one size below `path`.

    Where there are split folders, the classes are those of `train`, so that both splits number them alike. A folder
    without split folders serves as either split. Names that begin with a dot (`.ipynb_checkpoints`) are passed over.
    """
    try:
        place = _split_folder(path, split)
        train = path / "train"
        classes = class_folders(train if place != path and train.is_dir() else place)
        strangers = sorted(set(class_folders(place)) - set(classes))
        samples = list_images(place, {name: number for number, name in enumerate(classes)}, SUFFIXES)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{path}: {reason}; folder:{path} needs DIR/train/CLASS/ or DIR/CLASS/") from None
    if not classes:
        held = "image files but no class folders" if _has_images(place) else "no class folders"
        raise InputError(f"{place}: holds {held}; put the images of each class into a folder of its own")
    if strangers:
        raise InputError(f"{place}: class folder '{short(strangers[0])}' does not exist in {train}; add or remove it")
    if not samples:
        raise InputError(f"{place}: holds no images; files that end in {', '.join(SUFFIXES)} are read")
    labels = torch.tensor([label for _, label in samples])
    notes = tuple(_remarks(place, path, labels, classes))
    return RawDataset(labels, classes, ImageFiles([file for file, _ in samples]), notes)


def class_folders(place: Path) -> tuple[str, ...]:
    """The names of the folders in `place`, sorted."""
    return tuple(sorted(path.name for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")))


def list_images(place: Path, numbers: Mapping[str, int], suffixes: tuple[str, ...]) -> list[tuple[Path, int]]:
    """The image files below the class folders of `place` that have a number, sorted by class, folder and name."""
    samples = []
    for name in sorted(numbers):
        if (place / name).is_dir():
            files = (item for item in sorted(_walk(place / name)) if item[1].lower().endswith(suffixes))
            samples += [(Path(root, file), numbers[name]) for root, file in files]
    return samples


@dataclass(frozen=True)
class ImageFiles:
    """Encoded images, each in a file of its own."""

    paths: Sequence[Path]

    def read(self, rows: Tensor) -> Iterator[tuple[Path, str]]:
        """See `EncodedImages`."""
        return ((path, str(path)) for path in self.files(rows))

    def files(self, rows: Tensor) -> list[Path]:
        """See `EncodedImages`."""
        return [self.paths[row] for row in rows.tolist()]


def _walk(top: Path) -> Iterator[tuple[str, str]]:
    """Folder and name of each file below `top`; a folder that links reach twice counts once, so that circles end."""
    seen = set()
    for root, folders, files in os.walk(top, followlinks=True):
        status = Path(root).stat()
        identity = status.st_dev, status.st_ino
        if identity in seen:
            folders.clear()
            continue
        seen.add(identity)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from ((root, name) for name in files if not name.startswith("."))


def _has_images(place: Path) -> bool:
    return any(path.suffix.lower() in SUFFIXES for path in place.iterdir())


def _remarks(place: Path, path: Path, labels: Tensor, classes: Sequence[str]) -> Iterator[str]:
    if place == path:
        yield "has no folders train and test, so the same images serve as either split"
    counts = labels.bincount(minlength=len(classes)).tolist()
    empty = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if empty:
        yield f"{len(empty)} of {len(classes)} classes without an image: {listed(empty)}"


def _split_folder(root: Path, split: str) -> Path:
    present = {path.name for path in root.iterdir() if path.is_dir()}
    for name in SPLIT_FOLDERS[split]:
        if name in present:
            return root / name
    others = [name for names in SPLIT_FOLDERS.values() for name in names if name in present]
    if others:
        wanted = " or ".join(SPLIT_FOLDERS[split])
        raise InputError(f"{root}: has {', '.join(others)} but no folder {wanted}; add it for the {split} split")
    return root
