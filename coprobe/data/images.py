"""The images that are wanted out of many encoded ones, decoded into one tensor, with or without the bad ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from coprobe.data.bounds import check_memory, short
from coprobe.data.dataset import balanced_prefix
from coprobe.data.decode import BadImageError, decode, strict
from coprobe.data.image_size import ImageSize
from coprobe.errors import InputError

NAMED = 3
"""How many of several bad images a refusal names."""


class EncodedImages(Protocol):
    """The images of a data set as they are stored."""

    def read(self, rows: Tensor) -> Iterator[tuple[bytes | Path, str]]:
        """The encoded images (or their files) at ascending `rows`, in that order, each with how errors name it."""

    def files(self, rows: Tensor) -> Sequence[Path]:
        """The files that the images at `rows` are stored in."""


class DecodedImages(NamedTuple):
    """What was decoded.

    Attributes:
        images: uint8, chosen × channels × height × width; one channel if all images have one.
        rows: int64, chosen; which images these are, ascending.
        names: how errors name them.
        skipped: the names of the bad images that were left out.
    """

    images: Tensor
    rows: Tensor
    names: tuple[str, ...]
    skipped: tuple[str, ...] = ()


class _Bad(NamedTuple):
    row: int
    where: str
    reason: str
    message: str


@strict()
def decode_images(
    encoded: EncodedImages,
    labels: Tensor,
    classes: Sequence[str],
    where: str,
    *,
    limit: int | None,
    skip_bad: bool,
    size: ImageSize | None = None,
) -> DecodedImages:
    """Decode all images, or a class-balanced prefix of them.

    With `skip_bad` the prefix is the one that a data set without the bad images would have: for every image that
    turns out bad, the next of its class is tried. One thread: for 32×32 JPEGs the work under Python's lock outweighs
    the decoding, and a pool of two was a third slower than none (10 000 images: 0.9 s alone, 1.25 s with the pool).

    Args:
        encoded: the images.
        labels: int64, batch; of all images.
        classes: the class names, in the order of the labels.
        where: how errors name the data set.
        limit: see `balanced_prefix`; None takes all.
        skip_bad: go on without the images that `decode` refuses.
        size: to which they are brought.

    Raises:
        InputError: bad images without `skip_bad`, a class that has only bad ones, images of several sizes, or more
            than the memory holds.
    """
    is_tried = torch.zeros(len(labels), dtype=torch.bool)
    is_bad = is_tried.clone()
    bad: list[_Bad] = []
    chosen = _prefix(labels, is_bad, limit)
    decoded = _ImageArray(len(chosen), where)
    while len(fresh := chosen[~is_tried[chosen]]):
        is_tried[fresh] = True
        for row, (image, name) in zip(fresh.tolist(), encoded.read(fresh), strict=True):
            try:
                decoded.add(row, decode(image, name, size), name)
            except BadImageError as error:
                is_bad[row] = True
                if skip_bad or len(bad) < NAMED:
                    # Not the error itself, whose traceback keeps the bytes of the image.
                    bad.append(_Bad(row, error.where, error.reason, str(error)))
        if bad and not skip_bad:
            raise _refusal(bad, int(is_bad.sum()), len(fresh))
        _check_losses(labels, is_bad, classes, where, bad)
        chosen = _prefix(labels, is_bad, limit)
    return DecodedImages(*decoded.in_order(), tuple(image.where for image in bad))


def _prefix(labels: Tensor, is_bad: Tensor, limit: int | None) -> Tensor:
    good = (~is_bad).nonzero().squeeze(1)
    return good if limit is None else good[balanced_prefix(labels[good], limit)]


def _check_losses(labels: Tensor, is_bad: Tensor, classes: Sequence[str], where: str, bad: Sequence[_Bad]) -> None:
    total = labels.bincount(minlength=len(classes))
    lost = ((total > 0) & (labels[is_bad].bincount(minlength=len(classes)) == total)).nonzero().squeeze(1).tolist()
    if lost:
        all_lost = bool(is_bad.all())
        what = "images" if all_lost else f"images of the class '{short(classes[lost[0]])}'"
        count = len(labels) if all_lost else int(total[lost[0]])
        first = next(image for image in bad if labels[image.row] == lost[0])
        reason = f"{Path(first.where).name}: {first.reason}"
        raise InputError(f"{where}: all {count} {what} are bad ({short(reason, 120)}); replace them")


def _refusal(bad: Sequence[_Bad], count: int, tried: int) -> InputError:
    first = bad[0]
    if count == 1:
        return InputError(f"{first.message}, or pass --skip-bad")
    others = ", ".join(short(Path(image.where).name) for image in bad[1:])
    return InputError(
        f"{first.where}: {first.reason}; {count} of {tried} images are bad (also {others}"
        f"{', …' if count > len(bad) else ''}); replace or remove them, or pass --skip-bad"
    )


class _ImageArray:
    """Images of one size in one array, made when the first tells the size."""

    def __init__(self, count: int, where: str) -> None:
        self._count = count
        self._where = where
        self._pixels = np.empty((0, 1, 0, 0), dtype=np.uint8)
        self._rows: list[int] = []
        self._names: list[str] = []

    def add(self, row: int, image: np.ndarray, name: str) -> None:
        """Put in an image of height × width, or × 3."""
        height, width = image.shape[:2]
        if not self._rows:
            self._pixels = self._made(1 if image.ndim == 2 else 3, height, width)
        elif self._pixels.shape[2:] != (height, width):
            raise InputError(
                f"{name}: {width}×{height} pixels, but {self._names[0]} has "
                f"{self._pixels.shape[3]}×{self._pixels.shape[2]}; all images of a data set must have one size: "
                "commands that probe resize and crop them with --image-size N"
            )
        if image.ndim == 3 and self._pixels.shape[1] == 1:  # the first in colour after grey ones
            grey = self._pixels
            self._pixels = self._made(3, height, width)
            self._pixels[: len(self._rows)] = grey[: len(self._rows)]
        self._pixels[len(self._rows)] = image if image.ndim == 2 else image.transpose(2, 0, 1)
        self._rows.append(row)
        self._names.append(name)

    def _made(self, channels: int, height: int, width: int) -> np.ndarray:
        check_memory(self._where, self._count * channels * height * width)
        return np.empty((self._count, channels, height, width), dtype=np.uint8)

    def in_order(self) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """The images in the order of their rows, the rows, and the names."""
        rows, images = torch.tensor(self._rows), torch.from_numpy(self._pixels[: len(self._rows)])
        order = rows.argsort()
        if torch.equal(order, torch.arange(len(rows))):
            return images, rows, tuple(self._names)
        return images[order], rows[order], tuple(self._names[place] for place in order.tolist())
