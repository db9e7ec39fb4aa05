"""Images that a person has in Python already: tensors, arrays, torch data sets and loaders, as a `Dataset`."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from os import PathLike
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, RandomSampler

from coprobe.core.switches import ordinary, usual_torch
from coprobe.data.catalog import load
from coprobe.data.dataset import Dataset, balanced_prefix, unit_floats
from coprobe.errors import InputError

#: The name of a data set, a `Dataset`, images with labels, or something that gives these one by one or in batches.
Images: TypeAlias = "Dataset | str | tuple[Any, Any] | Iterable[Any]"

_PAIRS = "give images with labels: (x, y), a torch Dataset or a DataLoader of such pairs, or the name of a data set"
#: Images that are looked at together, so that no copy of all of them is made.
_CHUNK = 256


@usual_torch()
def as_dataset(data: Images, *, limit: int | None = None) -> Dataset:
    """Whatever holds labelled images, as a `Dataset`; read once, and independent of what becomes of `data` later.

    Pixels are kept as bytes where nothing is lost by it (every one is a multiple of 1/255), else as float32, so that
    the same images are the same data set, with the same digest, in whatever form they come.

    Args:
        data: the name of a data set (its test split, see `load`); a `Dataset`; images and labels as a pair of tensors
            or arrays, uint8 or float in [0, 1], N×C×H×W; a map-style torch `Dataset` of such pairs for single images
            (PIL images will do), which is read in its order; a `DataLoader` or anything else that can be iterated
            over, which is read to its end.
        limit: keep only so many images: a class-balanced choice (see `balanced_prefix`), or of what can only be
            iterated over the first; None keeps all.

    Raises:
        InputError: what is none of these, images or labels of another type, shape or range, images of several sizes.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, not {limit}")
    if isinstance(data, str):
        return load(data, limit=limit)
    if isinstance(data, Dataset):
        return data if limit is None else data.subset(balanced_prefix(data.labels, limit))
    name, split, classes = _described(data)
    notes: list[str] = []
    if _is_pair(data):
        images, labels = data
        found = [(_batch(images, name), _labels(labels, name))]
    elif isinstance(data, Tensor | np.ndarray | Mapping | PathLike) or not _can_be_read(data):
        folder = f"a folder is named as 'folder:{data}'; " if isinstance(data, PathLike) else ""
        raise InputError(f"a {type(data).__name__} holds no images with labels; {folder}{_PAIRS}")
    elif hasattr(data, "__len__") and hasattr(data, "__getitem__") and not isinstance(data, IterableDataset):
        found, notes = _all_items(data, name, limit)
    else:
        found, notes = _all_batches(data, name, limit), list(_about_loader(data))
    if not sum(len(images) for images, _ in found):
        raise InputError(f"{name}: holds no images; give others (an iterator that was used up has none)")
    pixels, labels = _joined([part for part, _ in found], name), torch.cat([part for _, part in found])
    if len(labels) != len(pixels):
        raise InputError(f"{name}: {len(pixels)} images and {len(labels)} labels; give one label per image")
    if limit is not None and limit < len(labels):
        rows = balanced_prefix(labels, limit)
        pixels, labels = pixels[rows], labels[rows]
    notes += _about_pixels(pixels)
    classes = classes or _numbers(max(0, int(labels.max())) + 1)
    return Dataset(pixels, labels, classes, name, split, notes=tuple(f"{name}: {note}" for note in notes))


def numbered(dataset: Dataset, num_classes: int) -> Dataset:
    """The same with so many classes, if they have no names, so that only those of labels that occur were known.

    Raises:
        InputError: a label that is none of so many classes.
    """
    known = dataset.classes == _numbers(dataset.num_classes)
    return replace(dataset, classes=_numbers(num_classes)) if known else dataset


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def _can_be_read(data: object) -> bool:
    return hasattr(data, "__iter__") or (hasattr(data, "__len__") and hasattr(data, "__getitem__"))


def _is_pair(data: object) -> TypeGuard[Sequence[Any]]:
    """Whether these are images and labels, and no sequence of two items."""
    return isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[0], Tensor | np.ndarray)


def _described(data: object) -> tuple[str, str, tuple[str, ...]]:
    """What it is called, which split it says it is, and the classes it names."""
    innermost, way = data, [type(data).__name__]
    while hasattr(innermost, "dataset"):  # of loaders and subsets
        innermost = innermost.dataset
        way.append(type(innermost).__name__)
    name = "(x, y)" if _is_pair(data) else " of ".join(way)
    split = {True: "train", False: "test"}.get(getattr(innermost, "train", None), "given")  # type: ignore[arg-type]
    named = getattr(innermost, "classes", None)
    if isinstance(named, Sequence) and named and not isinstance(named, str):
        return name, split, tuple(", ".join(one) if isinstance(one, tuple | list) else str(one) for one in named)
    return name, split, ()


def _all_items(data: Any, name: str, limit: int | None) -> tuple[list[tuple[Tensor, Tensor]], list[str]]:
    """The items of what has a length and is asked by number; where it says its labels, only those that are wanted."""
    rows: Sequence[int] = range(len(data))
    targets = getattr(data, "targets", None)
    if limit is not None and limit < len(rows) and isinstance(targets, Tensor | Sequence) and len(targets) == len(rows):
        rows = balanced_prefix(_labels(targets, name), limit).tolist()
    if not rows:
        return [], []
    found = [_single(data[row], name, row) for row in rows]
    again, _ = _single(data[rows[0]], name, rows[0])
    changes = not torch.equal(again, found[0][0])
    note = "gives another image each time it is asked (random augmentation?); what is probed is one draw of each"
    return found, [note] if changes else []


def _all_batches(data: Iterable[Any], name: str, limit: int | None) -> list[tuple[Tensor, Tensor]]:
    """What can only be iterated over, batch by batch or image by image; no more of it than is wanted."""
    found: list[tuple[Tensor, Tensor]] = []
    left = limit
    for number, item in enumerate(data):
        images, labels = _pair(item, name, number)
        if np.ndim(labels) == 0:
            found.append(_single(item, name, number))
        else:
            found.append((_batch(images, name)[:left], _labels(labels, name)[:left]))
        if left is not None and (left := left - len(found[-1][1])) <= 0:
            break
    return found


def _about_loader(data: Iterable[Any]) -> Iterator[str]:
    if isinstance(getattr(data, "sampler", None), RandomSampler):
        yield "shuffles, so another run sees these images in another order; give shuffle=False"


def _pair(item: Any, name: str, number: int) -> tuple[Any, Any]:
    if isinstance(item, tuple | list) and len(item) >= 2:
        return item[0], item[1]
    if isinstance(item, Mapping):
        keys = ", ".join(map(str, islice(item, 6)))
        raise InputError(f"{name}: item {number} is a dictionary ({keys}); give pairs of an image and its label")
    raise InputError(f"{name}: item {number} is a {type(item).__name__}, no pair of an image and its label; {_PAIRS}")


def _single(item: Any, name: str, number: int) -> tuple[Tensor, Tensor]:
    """One image and its label, as a batch."""
    image, label = _pair(item, name, number)
    if hasattr(image, "getbands"):  # a PIL image
        if image.mode[0] in "IF":
            raise InputError(
                f"{name}: image {number} is of more than 8 bits (mode {image.mode}); give floats from 0 to 1"
            )
        colours = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
        image = np.atleast_3d(np.asarray(colours)).transpose(2, 0, 1)
    if not isinstance(image, Tensor | np.ndarray) or np.ndim(image) != 3:
        shape = f" of shape {tuple(image.shape)}" if hasattr(image, "shape") else ""
        raise InputError(f"{name}: image {number} is a {type(image).__name__}{shape}; give tensors C×H×W")
    return _batch(image[None], name), _labels([label] if np.ndim(label) == 0 else label, name)


def _batch(images: Any, name: str) -> Tensor:
    """A copy of some images: as bytes where that loses nothing, else as float32."""
    if not isinstance(images, Tensor | np.ndarray):
        raise InputError(f"{name}: images are a {type(images).__name__}, no tensor or array; give N×C×H×W")
    given = _plain(images)
    if given.dim() != 4 or (given.shape[1] > 4 and given.shape[3] in (1, 3, 4)):
        raise InputError(f"{name}: images are of shape {'×'.join(map(str, given.shape))}, {_mend_shape(images, given)}")
    if given.dtype != torch.uint8 and not given.is_floating_point():
        kind = str(given.dtype).removeprefix("torch.")
        raise InputError(f"{name}: images are {kind}; give uint8 from 0 to 255, or float from 0 to 1")
    if given.dtype == torch.uint8:
        return given.clone(memory_format=torch.contiguous_format)
    return _joined([_without_loss(part.float()) for part in given.split(_CHUNK)], name)


def _plain(given: Tensor | np.ndarray) -> Tensor:
    """On the host, without graph, and no subclass of a tensor."""
    if isinstance(given, np.ndarray):
        return torch.from_numpy(np.array(given, order="C", dtype=given.dtype.newbyteorder("=")))
    if given.is_meta:
        raise InputError("a tensor on the meta device holds no numbers; make it on the CPU")
    return ordinary(given).cpu()


def _mend_shape(images: Tensor | np.ndarray, given: Tensor) -> str:
    if given.dim() == 4:
        how = "permute" if isinstance(images, Tensor) else "transpose"
        return f"as if channels were last; give N×C×H×W: x.{how}(0, 3, 1, 2)"
    if given.dim() == 3:
        return "without channels; give N×C×H×W: x[:, None] for N grey images, x[None] for a single one"
    return "not N×C×H×W"


def _without_loss(floats: Tensor) -> Tensor:
    """Floats as bytes if they are the 256 values that bytes stand for, else a copy of them."""
    pixels = (floats * 255).round_().clamp_(0, 255).nan_to_num_().to(torch.uint8)
    return pixels if torch.equal(unit_floats(pixels), floats) else floats.clone(memory_format=torch.contiguous_format)


def _joined(parts: list[Tensor], name: str) -> Tensor:
    """All of them, as bytes if every one is, else as floats."""
    sizes = list(dict.fromkeys(tuple(part.shape[1:]) for part in parts))
    if len(sizes) > 1:
        shown = " and ".join("×".join(map(str, size)) for size in sizes[:2])
        raise InputError(f"{name}: images are of several sizes ({shown}); bring them to one, as with a Resize")
    if len({part.dtype for part in parts}) > 1:
        parts = [unit_floats(part) for part in parts]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _labels(given: Any, name: str) -> Tensor:
    """Labels as int64 (batch,)."""
    if not isinstance(given, Tensor | np.ndarray):
        try:
            given = np.array([int(one) if _is_whole(one) else one for one in given])
        except (TypeError, ValueError):
            raise InputError(f"{name}: labels are no whole numbers; give one per image, from 0 on") from None
    if isinstance(given, np.ndarray) and given.dtype.kind not in "iufb":
        raise InputError(f"{name}: labels are {given.dtype}; give whole numbers, one per image, from 0 on")
    labels = _plain(given)
    if labels.dim() == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dim() != 1:
        shape = "×".join(map(str, labels.shape)) or "a single number"
        raise InputError(f"{name}: labels are of shape {shape}; give one number per image (of one-hot rows, argmax(1))")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        kind = str(labels.dtype).removeprefix("torch.")
        raise InputError(f"{name}: labels are {kind}; give whole numbers, one per image, from 0 on")
    return labels.long().clone()


def _is_whole(label: Any) -> bool:
    """Whether a label is a whole number, whoever's type it is of."""
    if isinstance(label, Tensor | np.ndarray):
        return label.ndim == 0 and not (label.dtype.is_floating_point if isinstance(label, Tensor) else False)
    return isinstance(label, numbers.Integral) and not isinstance(label, bool)


def _about_pixels(pixels: Tensor) -> list[str]:
    """What is strange about images that may yet be right."""
    largest = float(unit_floats(pixels.max()))
    if not 0 < largest <= 1 / 255 + 1e-6:
        return []
    if pixels.dtype == torch.uint8:
        return ["the largest pixel is 1 of 255, so all images are almost black; where 1 means white, give floats"]
    return [f"the largest pixel is {largest:.2g}, so all images are almost black; were they divided by 255 twice?"]
