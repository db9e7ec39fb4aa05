"""A folder of image files, one sub-folder per class (torchvision's ImageFolder layout)."""

from __future__ import annotations

from pathlib import Path

import torch

from coprobe.data.catalog import DATASETS, Request, Source
from coprobe.data.decode import decode_all
from coprobe.errors import InputError

SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val", "valid", "validation")}


@DATASETS.register(
    "folder",
    summary="image files in DIR/{train,test}/CLASS/ (val for test will do), or in DIR/CLASS/ for either split",
    source="torchvision's ImageFolder",
    argument="DIR",
)
def folder(request: Request) -> Source:
    """Images of one size below `request.path`, as RGB.

    Where there are split folders, the classes are those of `train`, so that both splits number them alike. A folder
    without split folders serves as either split.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

    assert request.path is not None
    try:
        place = _split_folder(request.path, request.split)
        train = request.path / "train"
        classes, numbers = find_classes(train if place != request.path and train.is_dir() else place)
        strangers = sorted(set(find_classes(place)[0]) - set(classes))
        samples = make_dataset(place, numbers, extensions=IMG_EXTENSIONS, allow_empty=True)
    except OSError as error:
        reason = error.strerror or str(error).rstrip(".")
        raise InputError(f"{request.path}: {reason}; {request.spec} needs DIR/train/CLASS/ or DIR/CLASS/") from None
    if strangers:
        raise InputError(f"{place}: class folder '{strangers[0]}' does not exist in {train}; add or remove it")
    if not samples:
        raise InputError(f"{place}: holds no images ({', '.join(IMG_EXTENSIONS)})")
    labels = torch.tensor([label for _, label in samples])

    def images(chosen: torch.Tensor) -> torch.Tensor:
        paths = [Path(samples[i][0]) for i in chosen.tolist()]
        return decode_all(((path, str(path)) for path in paths), len(paths))

    return Source(labels, tuple(classes), images)


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
