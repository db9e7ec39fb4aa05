"""The table of data sets by name, and `load`, which reads one of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from coprobe.core.registry import Registry
from coprobe.core.switches import usual_torch
from coprobe.data.bounds import cause, in_its_folder, listed, short
from coprobe.data.dataset import Dataset, balanced_prefix, check_labels
from coprobe.data.disk_cache import cache_key, cached
from coprobe.data.image_size import ImageSize
from coprobe.data.images import EncodedImages, decode_images
from coprobe.errors import InputError, unknown

SPLITS = ("train", "test")


@dataclass(frozen=True)
class RawDataset:
    """What a reader finds of one split: every label, and the images, which may be yet to be decoded.

    Attributes:
        labels: int64, batch.
        classes: the class names, in the order of the labels.
        images: uint8, batch × channels × height × width; or encoded, so that only those that are wanted are read.
        notes: what a person should know about how it was read.
    """

    labels: Tensor
    classes: tuple[str, ...]
    images: Tensor | EncodedImages
    notes: tuple[str, ...] = ()


DATASETS: Registry[Callable[[Path, str], RawDataset]] = Registry("dataset")
"""Readers by name, called with a path and a split ("train" or "test").

The path is the folder in which named data sets are kept, or, where the fact `argument` says that something must follow
the name after a colon, what follows it.
"""


def default_root() -> Path:
    """The folder of named data sets: `$COPROBE_DATA`, else `~/.cache/coprobe/data`."""
    return Path(os.environ.get("COPROBE_DATA") or "~/.cache/coprobe/data").expanduser()


@usual_torch()
def load(
    spec: str,
    split: str = "test",
    *,
    limit: int | None = None,
    root: Path | None = None,
    skip_bad: bool = False,
    cache: bool = True,
    image_size: str | None = None,
) -> Dataset:
    """Read one split of a data set into memory.

    Args:
        spec: `NAME` or `NAME:PATH`, the name being one of `DATASETS`.
        split: "train" or "test".
        limit: keep only a class-balanced prefix of so many images (see `balanced_prefix`); None keeps all.
        root: where named data sets are, or are downloaded to; None takes `default_root()`.
        skip_bad: go on without the images that can't be decoded (`Dataset.skipped` names them); a limit is still
            filled where the classes allow it. What is read then is the data set without those images: its digest is
            that of such a data set, not that of the whole one.
        cache: keep decoded images in the folder `decoded` of `root`, and map them from there the next time, as long as
            the files that they come from are unchanged (see `disk_cache.cache_key`); the result is the same.
        image_size: bring the images to one size, see `ImageSize.parse`; None leaves them as they are.

    Images out of files have one channel where all of them have one, else three; `Dataset.with_channels` converts them.

    Raises:
        InputError: an unknown name or split, an image size that is none, a path too many or missing, a limit below 1,
            data that are missing and can't be downloaded, data that are not what they should be, or a class that has
            only bad images.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if limit is not None and limit < 1:
        raise InputError(f"--limit must be at least 1, not {limit}")
    root = default_root() if root is None else root
    size = None if image_size is None else ImageSize.parse(image_size)
    started = time.time_ns()
    raw = _read(spec, split, root)
    what = f"{spec} ({split})"
    check_labels(raw.labels, len(raw.classes), what)
    every = torch.arange(len(raw.labels))
    chosen = every if limit is None else balanced_prefix(raw.labels, limit)

    def build(images: Tensor, rows: Tensor, names: tuple[str, ...] = (), skipped: tuple[str, ...] = ()) -> Dataset:
        notes = tuple(f"{what}: {note}" for note in (*raw.notes, *_remarks(raw, skipped, size)))
        return Dataset(images, raw.labels[rows], raw.classes, spec, split, skipped, notes, names)

    encoded = raw.images
    if isinstance(encoded, Tensor):
        return build(size.apply_to(encoded[chosen]) if size else encoded[chosen], chosen)

    def decode() -> Dataset:
        return build(*decode_images(encoded, raw.labels, raw.classes, what, limit=limit, skip_bad=skip_bad, size=size))

    if not cache:
        return decode()
    files = encoded.files(every if skip_bad else chosen)  # any image may be tried in place of a bad one
    settings = spec, split, limit, skip_bad, size, raw.classes, raw.notes
    return cached(root / "decoded", partial(cache_key, files, raw.labels, settings, started), decode)


def _read(spec: str, split: str, root: Path) -> RawDataset:
    """What the reader that `spec` names finds at the path that follows, or in `root`."""
    name, _, path = spec.partition(":")
    entry = DATASETS.entry(name)
    argument = entry.facts.get("argument")
    if argument and not path:
        raise InputError(f"dataset '{name}' needs a path; write {name}:{argument}")
    if not argument and spec != name:
        raise InputError(f"dataset '{name}' takes no path, but '{spec}' was given; write {name}")
    return entry.value(_path(name, path) if argument else root, split)


def _path(name: str, text: str) -> Path:
    """The path after the colon; readers may find that nothing is there, but not that the system refuses to look."""
    try:
        path = Path(text).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, ValueError, RuntimeError) as error:  # too long; a NUL or a lone surrogate; no such user
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"dataset '{name}': can't read '{short(text, 80)}' ({cause(reason)}); name another") from None
    return path


def _remarks(raw: RawDataset, skipped: tuple[str, ...], size: ImageSize | None) -> Iterator[str]:
    """What a person should know of any data set."""
    if len(raw.labels) > 1 and raw.labels.min() == raw.labels.max():
        name = short(raw.classes[int(raw.labels[0])])
        yield f"all {len(raw.labels)} images are of one class, '{name}'"
    if size:
        yield f"images of {size}"
    if skipped:
        names = listed([in_its_folder(name) for name in skipped])
        yield f"left out {len(skipped)} bad {'images' if len(skipped) > 1 else 'image'}: {names}"
