"""Labelled images held in memory, and class-balanced choices among them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from coprobe.errors import InputError

#: Images that are converted together.
_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels of one split of one data set, on the host.

    Attributes:
        images: batch × channels × height × width; uint8, or float32 in [0, 1] where bytes would lose something.
        labels: int64, batch; each in 0 … len(classes) - 1.
        classes: the class names, in the order of the labels.
        name: the spec as it was given (`cifar10`, `parquet:DIR`).
        split: "train" or "test"; "given" for images that a person had in Python.
        skipped: the names of the bad images that were left out when it was read.
        notes: what a person should know about how it was read, in sentences.
        names: of the images, how errors name them; empty unless each was a file, or a row of one.

    Raises:
        InputError: a tensor of another type or shape, no image at all, floats that are not in [0, 1], or a label out of
            range (its row is named).
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    split: str
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = field(default=(), repr=False)
    _digest: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype not in (torch.uint8, torch.float32) or images.ndim != 4 or 0 in images.shape[1:]:
            raise InputError(
                f"{self.name}: images are {images.dtype} of shape {tuple(images.shape)}; "
                "uint8 or float32 of shape batch × channels × height × width is needed"
            )
        if images.dtype == torch.float32:
            _check_range(images, self.name)
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise InputError(
                f"{self.name}: labels are {labels.dtype} of shape {tuple(labels.shape)}; "
                f"int64 of shape ({len(images)},) is needed, one per image"
            )
        check_labels(labels, len(self.classes), f"{self.name} ({self.split})")

    @property
    def num_classes(self) -> int:
        """How many classes there are, whether or not each has an image here."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def possible_shapes(self) -> list[tuple[int, int, int]]:
        """The image shape, and that with the other number of channels, where `with_channels` can give the images it."""
        channels, height, width = self.image_shape
        other = {1: 3, 3: 1}.get(channels) if self.names else None
        return [(count, height, width) for count in (channels, other) if count]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor | Sequence[int]) -> Dataset:
        """The images at `indices` (in that order) as a data set of the same name, split and classes."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        names = tuple(self.names[row] for row in chosen.tolist()) if self.names else ()
        return replace(self, images=self.images[chosen], labels=self.labels[chosen], names=names)

    def with_channels(self, count: int) -> Dataset:
        """The same images with so many channels, where they come from picture files, which may be saved either way.

        Grey ones become RGB by repetition, and RGB ones grey as Pillow makes them (ITU-R 601-2 luma). Other data sets,
        and other numbers of channels, stay as they are.
        """
        if not self.names or (self.image_shape[0], count) not in ((1, 3), (3, 1)):
            return self
        if count == 3:
            return replace(self, images=self.images.expand(-1, 3, -1, -1).contiguous())
        return replace(self, images=torch.cat([_luma(part) for part in self.images.split(_AT_ONCE)]))

    def digest(self) -> str:
        """The first 16 hexadecimal characters of the SHA-256 over shape, images and labels; cached."""
        if not self._digest:
            kind = "" if self.images.dtype == torch.uint8 else str(self.images.dtype)
            sha = hashlib.sha256(f"{tuple(self.images.shape)}{kind}".encode())
            sha.update(self.images.contiguous().numpy().data)
            sha.update(self.labels.contiguous().numpy().data)
            object.__setattr__(self, "_digest", sha.hexdigest()[:16])
        return self._digest


def _luma(images: Tensor) -> Tensor:
    """Grey values of RGB images, in 65536ths and rounded, as Pillow's `convert("L")` does."""
    red, green, blue = images.int().unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).to(torch.uint8).unsqueeze(1)


def unit_floats(pixels: Tensor, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
    """A copy of pixels as float32 in [0, 1]: bytes are divided by 255, floats stay what they are."""
    floats = pixels.to(torch.float32, memory_format=memory_format, copy=True)
    return floats.div_(255) if pixels.dtype == torch.uint8 else floats


def _check_range(images: Tensor, name: str) -> None:
    """Raise `InputError`, which says what the images look like, unless all are numbers in [0, 1]."""
    if not images.numel():
        return
    low, high = (float(bound) for bound in images.aminmax())
    if low >= 0 and high <= 1:
        return
    bad = int(((images < 0) | (images > 1) | images.isnan()).flatten(1).any(1).nonzero()[0])
    if not images[bad].isfinite().all():
        raise InputError(f"{name}: image {bad} has values that are not finite; mend it or leave it out")
    if low >= 0 and 2 < high <= 255:
        how = "divide them by 255, or give uint8"
    elif low >= -0.1 and high <= 1.1:
        how = "clip them with x.clip(0, 1)"
    else:
        how = "if they are normalised, give them as they were before, and the model preprocess=(mean, std)"
    raise InputError(f"{name}: images go from {low:.3g} to {high:.3g} (image {bad}) where 0 to 1 is needed; {how}")


def title(name: str) -> str:
    """The name of a data set as captions show it: `folder:DIR` and `parquet:DIR` without the way to DIR."""
    return name.rstrip("/").rpartition("/")[2]


def check_labels(labels: Tensor, num_classes: int, where: str) -> None:
    """Raise `InputError`, naming the first bad row, unless there are labels and all are in 0 … num_classes - 1."""
    if len(labels) == 0:
        raise InputError(f"{where}: holds no images; name another")
    if labels.max() < 0:
        found = f"-1 ({len(labels)} images)" if bool((labels == -1).all()) else "below 0"
        raise InputError(
            f"{where}: all labels are {found}, so they were not published; choose another --split or --data"
        )
    bad = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(bad):
        row = int(bad[0])
        raise InputError(
            f"{where}: row {row} has label {int(labels[row])}; with {num_classes} classes "
            f"labels go from 0 to {num_classes - 1}; mend or remove the row"
        )


def balanced_prefix(labels: Tensor, limit: int) -> Tensor:
    """Choose `limit` images, as evenly over the classes as they allow, the first of each class.

    Every class gives its first limit/C images; the remainder goes to the lowest classes that have images left, and
    what a small class can't give the others do. A larger limit always contains the choice of a smaller one.

    Args:
        labels: int64, batch.
        limit: how many to choose; `len(labels)` or more means all.

    Returns:
        Their indices, int64, ascending.

    Raises:
        InputError: `limit` below 1.
    """
    if limit < 1:
        raise InputError(f"--limit must be at least 1, not {limit}")
    if limit >= len(labels):
        return torch.arange(len(labels))
    _, members, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    quotas = _fill(counts, limit)

    by_class = torch.argsort(members, stable=True)
    class_start = counts.cumsum(0) - counts
    rank = torch.empty_like(members)
    rank[by_class] = torch.arange(len(labels)) - class_start[members[by_class]]
    return (rank < quotas[members]).nonzero().squeeze(1)


def _fill(counts: Tensor, total: int) -> Tensor:
    """Share `total` out among classes of `counts` images, evenly up to what each has; total ≤ counts.sum()."""
    quotas = torch.zeros_like(counts)
    left = total
    while left > 0:
        unfilled = (quotas < counts).nonzero().squeeze(1)
        share = left // len(unfilled)
        if share == 0:
            quotas[unfilled[:left]] += 1
            break
        quotas[unfilled] += (counts - quotas)[unfilled].clamp(max=share)
        left = total - int(quotas.sum())
    return quotas


def hold_out(dataset: Dataset, train: int | None, val: int) -> tuple[Dataset, Dataset]:
    """Split a training set into a training part and a disjoint held-out part, both class-balanced.

    The held-out images are the last of each class and the training images the first of what is left, so that a
    training part of any size keeps clear of the held-out part, which does not depend on that size.

    Args:
        dataset: what to split.
        train: images for training; None takes all that are not held out.
        val: images to hold out.

    Returns:
        The training part and the held-out part, each in the order of `dataset`.

    Raises:
        InputError: fewer than one image asked for in either part, or more in both than there are.
    """
    total = len(dataset)
    wanted = 1 if train is None else train
    if wanted < 1 or val < 1:
        raise InputError(f"both parts need at least 1 image, not {train} for training and {val} held out")
    if wanted + val > total:
        raise InputError(
            f"{dataset.name}: {wanted} images for training and {val} held out are {wanted + val}, "
            f"but there are only {total}; ask for fewer"
        )
    is_held = torch.zeros(total, dtype=torch.bool)
    is_held[total - 1 - balanced_prefix(dataset.labels.flip(0), val)] = True
    rest = (~is_held).nonzero().squeeze(1)
    if train is not None:
        rest = rest[balanced_prefix(dataset.labels[rest], train)]
    return dataset.subset(rest), dataset.subset(is_held.nonzero().squeeze(1))
