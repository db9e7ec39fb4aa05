"""The images of a data set as batches on the device, in order, each read and converted once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from coprobe.core.engine import FULL
from coprobe.data.dataset import Dataset, unit_floats
from coprobe.data.loader import place

SHARE = 0.1
"""Of a GPU's free memory, what images may fill that only wait there; the rest is for the work on them."""


@dataclass(frozen=True)
class ImageBatch:
    """Some images on the device.

    Attributes:
        images: float32 in [0, 1], batch × channels × height × width.
        labels: int64, batch.
        indices: int64, batch; where in the data set each image stands, which decides its random numbers.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, first: int, stop: int) -> ImageBatch:
        """Some consecutive images of it, counted from 0."""
        return ImageBatch(self.images[first:stop], self.labels[first:stop], self.indices[first:stop])


def bounds(first: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """First image and end of every batch; the last two share their images if the last would have less than 16."""
    while (left := stop - first) > 0:
        is_short = 2 * FULL <= size < left < size + FULL
        end = first + (left // 2 if is_short else min(left, size))
        yield first, end
        first = end


def stream(
    dataset: Dataset, batches: Iterator[tuple[int, int]] | list[tuple[int, int]], device: torch.device | str = "cpu"
) -> Iterator[ImageBatch]:
    """Read a data set batch by batch.

    On an accelerator the images stay as they are stored, unless they would fill more than `SHARE` of a GPU's memory.

    Args:
        dataset: the images.
        batches: first image and end of each, see `bounds`.
        device: where the batches are to be.
    """
    device = torch.device(device)
    pixels, labels = place(dataset.images, device, SHARE), dataset.labels.to(device)
    for first, stop in batches:
        here = pixels[first:stop]
        if here.device.type != device.type:
            here = here.pin_memory().to(device, non_blocking=True)
        images = unit_floats(here, torch.contiguous_format)
        yield ImageBatch(images, labels[first:stop], torch.arange(first, stop, device=device))
