"""The table of data sets by name, and `load`, which reads one of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from coprobe.core.registry import Registry
from coprobe.data.bounds import cause, in_its_folder, listed, short
from coprobe.data.dataset import Dataset, balanced_prefix, check_labels
from coprobe.data.decoded import identity, remembered
from coprobe.data.gather import Encoded, gather
from coprobe.errors import InputError, unknown

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
    """What a reader answers: every label, and the images or a way to get some of them.

    Attributes:
        labels: int64, batch.
        classes: the class names, in the order of the labels.
        images: uint8, batch × channels × height × width; or, where they are yet to be decoded, a function that gives
            the encoded images at some indices, so that only those that are wanted are read.
        notes: what a person should know about how the data set was read.
        files: of encoded images, a function from ascending indices to the files that those images come from; without
            it they are decoded every time.
    """

    labels: Tensor
    classes: tuple[str, ...]
    images: Tensor | Encoded
    notes: tuple[str, ...] = ()
    files: Callable[[Tensor], Sequence[Path]] | None = None


DATASETS: Registry[Callable[[Request], Source]] = Registry("dataset")
"""Readers by name. The fact `argument` says what must follow the name after a colon, where something must."""


def default_root() -> Path:
    """The folder of named data sets: `$COPROBE_DATA`, else `~/.cache/coprobe/data`."""
    return Path(os.environ.get("COPROBE_DATA") or "~/.cache/coprobe/data").expanduser()


def load(
    spec: str,
    split: str = "test",
    *,
    limit: int | None = None,
    root: Path | None = None,
    skip_bad: bool = False,
    cache: bool = True,
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
            the files that they come from are unchanged (see `decoded.identity`); nothing else about the result differs.

    Raises:
        InputError: an unknown name or split, a path too many or missing, a limit below 1, data that are missing and
            can't be downloaded, data that are not what they should be, or a class that has only bad images.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if limit is not None and limit < 1:
        raise InputError(f"--limit must be at least 1, not {limit}")
    reader, where = _named(spec)
    started = time.time_ns()
    request = Request(spec, where, split, default_root() if root is None else root)
    source = reader(request)
    what = f"{spec} ({split})"
    check_labels(source.labels, len(source.classes), what)
    total = len(source.labels)
    chosen = torch.arange(total) if limit is None else balanced_prefix(source.labels, limit)

    def build(images: Tensor, rows: Tensor = chosen, skipped: tuple[str, ...] = ()) -> Dataset:
        notes = tuple(f"{what}: {note}" for note in (*source.notes, *_remarks(source, skipped)))
        return Dataset(images, source.labels[rows], source.classes, spec, split, skipped, notes)

    encoded = source.images
    if isinstance(encoded, Tensor):
        return build(encoded[chosen])

    decode = partial(gather, encoded, source.labels, source.classes, what, limit=limit, skip_bad=skip_bad)
    if not cache or source.files is None:
        return build(*decode())
    # Any image may be tried in place of a bad one.
    files = source.files(torch.arange(total) if skip_bad else chosen)
    identify = partial(identity, files, source.labels, (limit, skip_bad), started)
    return remembered(request.root / "decoded", identify, decode, lambda found: build(*found))


def _named(spec: str) -> tuple[Callable[[Request], Source], Path | None]:
    """The reader of a data set, and what it is to read where it takes a path."""
    name, _, path = spec.partition(":")
    entry = DATASETS.entry(name)
    argument = entry.facts.get("argument")
    if argument and not path:
        raise InputError(f"dataset '{name}' needs a path; write {name}:{argument}")
    if not argument and spec != name:
        raise InputError(f"dataset '{name}' takes no path, but '{spec}' was given; write {name}")
    return entry.value, _path(name, path) if argument else None


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


def _remarks(source: Source, skipped: tuple[str, ...]) -> Iterator[str]:
    """What a person should know of any data set."""
    if len(source.labels) > 1 and source.labels.min() == source.labels.max():
        name = short(source.classes[int(source.labels[0])])
        yield f"all {len(source.labels)} images are of one class, '{name}'"
    if skipped:
        names = listed([in_its_folder(name) for name in skipped])
        yield f"left out {len(skipped)} bad {'images' if len(skipped) > 1 else 'image'}: {names}"
