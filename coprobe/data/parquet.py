"""Parquet files of encoded images, as the Hugging Face Hub serves them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coprobe.data.bounds import cause, check_growth, short
from coprobe.data.catalog import DATASETS, RawDataset
from coprobe.data.parquet_files import split_files
from coprobe.errors import InputError

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label", "labels")
MAX_ROWS = 20_000_000
"""More than ImageNet-21k has. Two megabytes of Parquet can claim 400 million rows and fill the memory."""
MAX_CLASSES = 100_000
LABELS_AT_ONCE = 65536
IMAGES_AT_ONCE = 512
BYTES_AT_ONCE = 64 * 2**20
"""What a batch of encoded images may hold; Arrow takes up to five times as much while it fills one."""


@dataclass(frozen=True)
class _File:
    path: Path
    parquet: Any  # pyarrow.parquet.ParquetFile; pyarrow has no types
    image: str
    label: str

    @property
    def rows(self) -> int:
        return int(self.parquet.metadata.num_rows)

    @property
    def image_bytes(self) -> str:
        return f"{self.image}.bytes"


@DATASETS.register(
    "parquet",
    summary="Hugging Face image Parquet: DIR/train*.parquet and DIR/test*.parquet, or one file for either split",
    source="https://huggingface.co/docs/hub/datasets-image",
    argument="DIR",
)
def parquet(path: Path, split: str) -> RawDataset:
    """Images of the column `img` or `image` (a struct with `bytes`), with the labels beside them.

    Class names come from the `huggingface` entry of the schema; without it they are "0" … "C-1", C being the largest
    label plus one. A single file serves as either split; which files of a folder do, `split_files` says.
    """
    paths, notes = split_files(path, split)
    files = [_open(file) for file in paths]
    rows = sum(file.rows for file in files)
    if rows > MAX_ROWS:
        raise InputError(f"{path}: {rows} rows, more than {MAX_ROWS}; split it up")
    labels = torch.cat([_labels(file) for file in files])
    named = {_class_names(file): file.path.name for file in files}
    if len(named) > 1:
        one, other = list(named.values())[:2]
        raise InputError(f"{path}: '{short(one)}' and '{short(other)}' name their classes differently; read one alone")
    classes = next(iter(named)) or _numbered(labels, path)
    return RawDataset(labels, classes, _ParquetImages(files), notes)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a whole Parquet file ({cause(error)}); download it again") from None


def _open(path: Path) -> _File:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    with _readable(path):
        file = ParquetFile(path, page_checksum_verification=True)
        schema = file.schema_arrow
        groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    if min(groups, default=0) < 0 or sum(groups) != file.metadata.num_rows:
        raise InputError(f"{path}: its footer contradicts itself about the number of rows; download it again")
    image = next((name for name in IMAGE_COLUMNS if name in schema.names), None)
    label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    if image is None or label is None:
        raise InputError(
            f"{path}: has the columns {short(', '.join(schema.names[:20]), 80)}; an image column "
            f"({' or '.join(IMAGE_COLUMNS)}) and a label column ({' or '.join(LABEL_COLUMNS)}) are needed"
        )
    kind = schema.field(image).type
    if not (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)):
        raise InputError(f"{path}: column '{image}' is {short(str(kind), 80)}; a struct with binary 'bytes' is needed")
    if not pa.types.is_integer(schema.field(label).type):
        raise InputError(f"{path}: column '{label}' is {short(str(schema.field(label).type), 80)}; integers are needed")
    return _File(path, file, image, label)


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _labels(file: _File) -> Tensor:
    """The labels, read batch by batch, since the footer's word for their number need not be true."""
    labels = torch.empty(file.rows, dtype=torch.int64)
    start = 0
    with _readable(file.path):
        for batch in file.parquet.iter_batches(LABELS_AT_ONCE, columns=[file.label]):
            numbers = _numbers(file, batch.column(0), start)
            if start + len(numbers) > file.rows:
                break
            labels[start : start + len(numbers)] = numbers
            start += len(numbers)
        else:
            if start == file.rows:
                return labels
    raise InputError(f"{file.path}: has not the {file.rows} rows that its footer says; download it again")


def _numbers(file: _File, column: Any, first_row: int) -> Tensor:
    import pyarrow as pa

    if column.null_count:
        row = first_row + column.is_null().to_pylist().index(True)
        raise InputError(f"{file.path}: row {row} has no label; remove it")
    try:
        return torch.from_numpy(column.cast(pa.int64()).to_numpy().copy())
    except pa.ArrowInvalid:
        raise InputError(
            f"{file.path}: column '{file.label}' holds more than {2**63 - 1}; labels count from 0"
        ) from None


def _class_names(file: _File) -> tuple[str, ...] | None:
    metadata = file.parquet.schema_arrow.metadata or {}
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][file.label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names):
        return None
    if len(names) > MAX_CLASSES:
        raise InputError(f"{file.path}: names {len(names)} classes; more than {MAX_CLASSES} are not supported")
    return tuple(map(str, names)) or None


def _numbered(labels: Tensor, path: Path) -> tuple[str, ...]:
    largest = int(labels.max()) if len(labels) else -1
    if largest >= MAX_CLASSES:
        row = int(labels.argmax())
        raise InputError(f"{path}: row {row} has label {largest}; more than {MAX_CLASSES} classes are not supported")
    return tuple(map(str, range(largest + 1)))


@dataclass(frozen=True)
class _ParquetImages:
    """Encoded images in row groups, whose rows count through all files; a batch of rows is in memory at a time."""

    parts: list[_File]

    def read(self, rows: Tensor) -> Iterator[tuple[bytes, str]]:
        start = 0
        for file in self.parts:
            first = start
            for group in range(file.parquet.num_row_groups):
                stop = start + file.parquet.metadata.row_group(group).num_rows
                mine = rows[(rows >= start) & (rows < stop)] - start
                if len(mine):
                    yield from _read_group(file, group, mine, start - first)
                start = stop

    def files(self, rows: Tensor) -> list[Path]:
        return [file.path for file in self.parts]


def _read_group(file: _File, group: int, chosen: Tensor, first_row: int) -> Iterator[tuple[bytes, str]]:
    batches = file.parquet.iter_batches(_rows_at_once(file, group), row_groups=[group], columns=[file.image_bytes])
    start = 0
    while start <= int(chosen[-1]):
        with _readable(file.path):
            batch = next(batches, None)
        if batch is None:
            raise InputError(f"{file.path}: ends before row {first_row + int(chosen[-1])}; download it again")
        column = batch.column(0).field("bytes")
        for row in (chosen[(chosen >= start) & (chosen < start + len(column))] - start).tolist():
            yield column[row].as_py() or b"", f"{file.path} row {first_row + start + row}"
        start += len(column)


def _rows_at_once(file: _File, group: int) -> int:
    """So many rows that a batch stays within `BYTES_AT_ONCE`, even if each holds all bytes of its row group.

    They can: a dictionary stores what many rows share once, and 463 bytes of Parquet may hold 200 images of 1 MB.
    """
    metadata = file.parquet.metadata.row_group(group)
    columns = (metadata.column(number) for number in range(metadata.num_columns))
    size = next(column.total_uncompressed_size for column in columns if column.path_in_schema == file.image_bytes)
    check_growth(str(file.path), file.path.stat().st_size, size)
    return max(1, min(IMAGES_AT_ONCE, BYTES_AT_ONCE // max(1, size)))
