"""Images for which a model gives no logits to judge, though it does for others: black ones that it divides by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from coprobe.checkpoint.checkpoint import Checkpoint
from coprobe.core.engine import BatchSize, frozen, in_batches
from coprobe.data import Dataset
from coprobe.data.bounds import in_its_folder, listed
from coprobe.errors import InputError, NotFiniteError
from coprobe.models.classifier import usable


@contextmanager
def naming_images(
    model: nn.Module, dataset: Dataset, device: torch.device | str, batch_size: int | None
) -> Iterator[None]:
    """A block whose `NotFiniteError` names the images, where clean ones are its cause: an `InputError` then."""
    try:
        yield
    except NotFiniteError as error:
        rows = unusable_images(model, dataset, device=device, batch_size=batch_size)
        if not 0 < len(rows) < len(dataset):
            raise
        raise InputError(
            f"{dataset.name} ({dataset.split}): the model's logits are not finite for {_named(dataset, rows)}, and are "
            "for the others; remove what it can't judge, or pass --skip-bad"
        ) from error


def without_unusable(
    checkpoint: Checkpoint, dataset: Dataset, *, device: torch.device | str = "cpu", batch_size: int | None = None
) -> Dataset:
    """The images without those that have no logits to judge (NaN, +∞), which its `skipped` and `notes` name.

    If there are no others, it is not their fault, and all are left.
    """
    suited, _ = checkpoint.suited(dataset)
    checkpoint.check_fit(f"{dataset.name} ({dataset.split})", suited.num_classes, suited.image_shape)
    rows = unusable_images(checkpoint.model.to(device), suited, device=device, batch_size=batch_size)
    if not 0 < len(rows) < len(dataset):
        return dataset
    is_usable = torch.ones(len(dataset), dtype=torch.bool)
    is_usable[rows] = False
    note = f"{dataset.name} ({dataset.split}): left out {_named(dataset, rows)}, as the model's logits are not finite"
    skipped = (*dataset.skipped, *(_name(dataset, row) for row in rows.tolist()))
    return replace(dataset.subset(is_usable.nonzero().squeeze(1)), skipped=skipped, notes=(*dataset.notes, note))


def unusable_images(
    model: nn.Module, dataset: Dataset, *, device: torch.device | str = "cpu", batch_size: int | None = None
) -> Tensor:
    """The rows of the clean images whose logits can't be judged, int64, ascending."""

    def work(start: int, stop: int) -> Tensor:
        return usable(model(dataset.images[start:stop].to(device).float() / 255)).cpu()

    with frozen(model), torch.no_grad():
        is_usable = torch.cat(list(in_batches(len(dataset), work, BatchSize(batch_size, device))))
    return (~is_usable).nonzero().squeeze(1)


def _named(dataset: Dataset, rows: Tensor) -> str:
    names = listed([in_its_folder(_name(dataset, row)) for row in rows.tolist()])
    return f"{len(rows)} of {len(dataset)} images ({names})"


def _name(dataset: Dataset, row: int) -> str:
    return dataset.names[row] if dataset.names else f"image {row}"
