"""Parquet files of encoded images, as the Hugging Face Hub serves them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coprobe.data.catalog import DATASETS, Request, Source
from coprobe.data.decode import decode_all
from coprobe.errors import InputError

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label", "labels")
SPLIT_WORDS = {"train": ("train",), "test": ("test", "val")}
MAX_ROWS = 20_000_000
"""More than ImageNet-21k has. Two megabytes of Parquet can claim 400 million rows and fill the memory."""
MAX_CLASSES = 100_000
BATCH_ROWS = 512


@dataclass(frozen=True)
class _File:
    path: Path
    parquet: Any  # pyarrow.parquet.ParquetFile; pyarrow has no types
    image: str
    label: str

    @property
    def rows(self) -> int:
        return int(self.parquet.metadata.num_rows)


@DATASETS.register(
    "parquet",
    summary="Hugging Face image Parquet: DIR/train*.parquet and DIR/test*.parquet, or one file for either split",
    source="https://huggingface.co/docs/hub/datasets-image",
    argument="DIR",
)
def parquet(request: Request) -> Source:
    """Images of the column `img` or `image` (a struct with `bytes`), as RGB, with the labels beside them.

    Class names come from the `huggingface` entry of the schema; without it they are "0" … "C-1", C being the largest
    label plus one. A single file serves as either split.
    """
    assert request.path is not None
    files = [_open(path) for path in _split_files(request.path, request.split)]
    rows = sum(file.rows for file in files)
    if rows > MAX_ROWS:
        raise InputError(f"{request.path}: {rows} rows, more than {MAX_ROWS}; split it up")
    labels = torch.cat([_labels(file) for file in files])
    classes = _class_names(files[0]) or _numbered(labels, request.path)

    def images(chosen: Tensor) -> Tensor:
        return decode_all(_encoded(files, chosen), len(chosen))

    return Source(labels, classes, images)


def _split_files(path: Path, split: str) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder; name a folder of Parquet files")
    present = sorted(path.glob("*.parquet"))
    for word in SPLIT_WORDS[split]:
        # The word must begin a part of the name: "test-0", "cifar_test", but not "latest".
        if found := [file for file in present if re.search(rf"(?<![a-z]){word}", file.stem.lower())]:
            return found
    names = ", ".join(file.name for file in present[:4]) or "no Parquet file at all"
    wanted = " or ".join(f"{word}*.parquet" for word in SPLIT_WORDS[split])
    raise InputError(f"{path}: no {wanted} for the {split} split; it holds {names}")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a whole Parquet file ({reason}); download it again") from None


def _open(path: Path) -> _File:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    with _readable(path):
        file = ParquetFile(path, page_checksum_verification=True)
        schema = file.schema_arrow
    image = next((name for name in IMAGE_COLUMNS if name in schema.names), None)
    label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    if image is None or label is None:
        raise InputError(
            f"{path}: has the columns {', '.join(schema.names)}; an image column ({' or '.join(IMAGE_COLUMNS)}) "
            f"and a label column ({' or '.join(LABEL_COLUMNS)}) are needed"
        )
    kind = schema.field(image).type
    if not (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)):
        raise InputError(f"{path}: column '{image}' is {kind}; a struct with binary 'bytes' is needed")
    if not pa.types.is_integer(schema.field(label).type):
        raise InputError(f"{path}: column '{label}' is {schema.field(label).type}; integers are needed")
    return _File(path, file, image, label)


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _labels(file: _File) -> Tensor:
    import pyarrow as pa

    with _readable(file.path):
        column = file.parquet.read(columns=[file.label]).column(0).cast(pa.int64())
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise InputError(f"{file.path}: row {row} has no label; remove it")
    return torch.from_numpy(column.to_numpy().copy())


def _class_names(file: _File) -> tuple[str, ...] | None:
    metadata = file.parquet.schema_arrow.metadata or {}
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][file.label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def _numbered(labels: Tensor, path: Path) -> tuple[str, ...]:
    largest = int(labels.max()) if len(labels) else -1
    if largest >= MAX_CLASSES:
        row = int(labels.argmax())
        raise InputError(f"{path}: row {row} has label {largest}; more than {MAX_CLASSES} classes are not supported")
    return tuple(map(str, range(largest + 1)))


def _encoded(files: list[_File], chosen: Tensor) -> Iterator[tuple[bytes, str]]:
    """The encoded images at `chosen` (ascending row numbers through all files), a batch of rows in memory at a time."""
    start = 0
    for file in files:
        mine = chosen[(chosen >= start) & (chosen < start + file.rows)] - start
        yield from _encoded_in(file, mine)
        start += file.rows


def _encoded_in(file: _File, chosen: Tensor) -> Iterator[tuple[bytes, str]]:
    start = 0
    for group in range(file.parquet.num_row_groups):
        stop = start + file.parquet.metadata.row_group(group).num_rows
        mine = chosen[(chosen >= start) & (chosen < stop)] - start
        if len(mine):
            yield from _encoded_in_group(file, group, mine, start)
        start = stop


def _encoded_in_group(file: _File, group: int, chosen: Tensor, first_row: int) -> Iterator[tuple[bytes, str]]:
    batches = file.parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=[f"{file.image}.bytes"])
    start = 0
    while True:
        with _readable(file.path):
            batch = next(batches, None)
        if batch is None:
            return
        column = batch.column(0).field("bytes")
        for row in (chosen[(chosen >= start) & (chosen < start + len(column))] - start).tolist():
            where = f"{file.path} row {first_row + start + row}"
            encoded = column[row].as_py()
            if encoded is None:
                raise InputError(f"{where}: the image has no bytes; remove the row")
            yield encoded, where
        start += len(column)
