"""The table of data sets by name, and `load`, which reads one of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from coprobe.data.dataset import Dataset, balanced_prefix, check_labels
from coprobe.errors import InputError, unknown
from coprobe.registry import Registry

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Request:
    """What a reader is asked for.

    Attributes:
        spec: the data set as the user named it, for error messages.
        path: what followed the colon in `spec`; None for a data set that takes no path.
        split: "train" or "test".
        root: the folder in which named data sets are kept.
    """

    spec: str
    path: Path | None
    split: str
    root: Path


@dataclass(frozen=True)
class Source:
    """What a reader answers: every label, and a way to get some of the images.

    Attributes:
        labels: int64, batch.
        classes: the class names, in the order of the labels.
        images: from ascending indices to their images, uint8, chosen × channels × height × width; called once, so
            that only the images that are wanted are decoded.
    """

    labels: Tensor
    classes: tuple[str, ...]
    images: Callable[[Tensor], Tensor]


DATASETS: Registry[Callable[[Request], Source]] = Registry("dataset")
"""Readers by name. The fact `argument` says what must follow the name after a colon, where something must."""


def default_root() -> Path:
    """The folder of named data sets: `$COPROBE_DATA`, else `~/.cache/coprobe/data`."""
    return Path(os.environ.get("COPROBE_DATA") or "~/.cache/coprobe/data").expanduser()


def load(spec: str, split: str = "test", *, limit: int | None = None, root: Path | None = None) -> Dataset:
    """Read one split of a data set into memory.

    Args:
        spec: `NAME` or `NAME:PATH`, the name being one of `DATASETS`.
        split: "train" or "test".
        limit: keep only a class-balanced prefix of so many images (see `balanced_prefix`); None keeps all.
        root: where named data sets are, or are downloaded to; None takes `default_root()`.

    Raises:
        InputError: an unknown name or split, a path too many or missing, a limit below 1, data that are missing and
            can't be downloaded, or data that are not what they should be.
    """
    name, _, path = spec.partition(":")
    entry = DATASETS.entry(name)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if limit is not None and limit < 1:
        raise InputError(f"--limit must be at least 1, not {limit}")
    argument = entry.facts.get("argument")
    if argument and not path:
        raise InputError(f"dataset '{name}' needs a path; write {name}:{argument}")
    if not argument and spec != name:
        raise InputError(f"dataset '{name}' takes no path, but '{spec}' was given; write {name}")

    where = Path(path).expanduser() if argument else None
    source = entry.value(Request(spec, where, split, default_root() if root is None else root))
    check_labels(source.labels, len(source.classes), f"{spec} ({split})")
    total = len(source.labels)
    chosen = torch.arange(total) if limit is None else balanced_prefix(source.labels, limit)
    return Dataset(source.images(chosen), source.labels[chosen], source.classes, spec, split)
