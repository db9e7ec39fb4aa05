"""Batches straight from the device's memory, augmented there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from coprobe.core.randomness import generator_for
from coprobe.data.dataset import Dataset, unit_floats
from coprobe.errors import InputError, unknown

PADDING_MODES = ("zero", "reflect")


@dataclass(frozen=True)
class Batch:
    """One batch on the device, or one process's part of it.

    Attributes:
        images: float32 in [0, 1], batch × channels × height × width.
        labels: int64, batch.
        indices: int64, batch; where in the data set each image stands.
        whole: `indices` of the whole batch, of which several processes have a part each.
        first: where in `whole` this part begins.
        offsets: int64, batch × 2; top and left of each crop in the padded image. None without augmentation.
        mirrored: bool, batch; which images are flipped left to right after the crop. None without augmentation.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    whole: Tensor
    first: int = 0
    offsets: Tensor | None = None
    mirrored: Tensor | None = None

    @property
    def part(self) -> slice:
        """Where in the whole batch this part is."""
        return slice(self.first, self.first + len(self.indices))

    @property
    def fraction(self) -> float:
        """How much of the whole batch this part is."""
        return len(self.indices) / len(self.whole)


def draw_augmentation(count: int, padding: int, flip: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a random crop and flip for each of `count` images.

    Args:
        count: how many images.
        padding: pixels added on every side before the crop.
        flip: mirror half of the images; otherwise none.
        generator: on the CPU, so that every device gets the same draws.

    Returns:
        The crops' top and left offsets in the padded image, int64, count × 2, each uniform in 0 … 2·padding; and
        which images are mirrored left to right, bool, count.
    """
    offsets = torch.randint(0, 2 * padding + 1, (count, 2), generator=generator)
    mirrored = torch.rand(count, generator=generator) < (0.5 if flip else 0.0)
    return offsets, mirrored


class Loader:
    """Iterate over a data set in batches, without worker processes.

    The images stay on the device as they are stored (in host memory if they would fill more than half of a GPU's free
    memory); a batch is one gather. Order and augmentation of an epoch depend on `seed` and the epoch's number alone,
    not on the device, the batch size, the number of processes or what ran before.

    Args:
        dataset: the images.
        batch_size: images per batch; the last batch may be smaller.
        device: where the batches are to be.
        shuffle: a new random order each epoch.
        augment: random crops of the padded image, and random flips.
        flip: whether augmentation mirrors; wrong for digits and letters.
        padding: pixels added on every side before a crop.
        padding_mode: "zero" (black) or "reflect" (mirrored without repeating the edge).
        drop_last: leave out the last batch if it is smaller.
        seed: 0 or more.
        channels_last: give images in `torch.channels_last` memory format.
        part: rank and number of the processes that share every batch; each gets a contiguous part of it, and a last
            batch of fewer images than processes is left out.

    Raises:
        InputError: a batch size below 1, a negative seed or padding, an unknown padding mode, or more padding than
            an image can reflect.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        device: str | torch.device = "cpu",
        shuffle: bool = False,
        augment: bool = False,
        flip: bool = True,
        padding: int = 4,
        padding_mode: str = "zero",
        drop_last: bool = False,
        seed: int = 0,
        channels_last: bool = False,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        if batch_size < 1:
            raise InputError(f"--batch-size must be at least 1, not {batch_size}")
        if seed < 0:
            raise InputError(f"--seed must be at least 0, not {seed}")
        _check_padding(padding, padding_mode, dataset)
        self.dataset = dataset
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.shuffle = shuffle
        self.augment = augment
        self.flip = flip
        self.padding = padding
        # A part must hold an image.
        self._smallest = batch_size if drop_last else part[1]
        self._part = part
        self.seed = seed
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._labels = dataset.labels.to(self.device)
        # Channels innermost: a gathered pixel is one piece of memory, and channels_last costs nothing.
        pixels = dataset.images.permute(0, 2, 3, 1)
        pixels = _pad(pixels, padding, padding_mode) if augment else pixels
        self._pixels = place(pixels.contiguous(), self.device, 0.5)

    def __len__(self) -> int:
        batches, rest = divmod(len(self.dataset), self.batch_size)
        return batches + (rest >= self._smallest and rest > 0)

    @property
    def images(self) -> int:
        """How many images an epoch has, over all processes."""
        return min(len(self) * self.batch_size, len(self.dataset))

    def batches(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (from 0), from the one with the number `first` (from 0) on."""
        total = len(self.dataset)
        generator = generator_for(self.seed, "loader", epoch)
        order = torch.randperm(total, generator=generator) if self.shuffle else torch.arange(total)
        order = order.to(self._pixels.device)
        drawn = None
        if self.augment:
            offsets, mirrored = draw_augmentation(total, self.padding, self.flip, generator)
            drawn = offsets.to(self._pixels.device), mirrored.to(self._pixels.device)
        for number in range(first, len(self)):
            yield self._batch(order, drawn, number * self.batch_size)

    def _batch(self, order: Tensor, drawn: tuple[Tensor, Tensor] | None, start: int) -> Batch:
        """This process's part of the batch that begins at `start` of the order."""
        rank, processes = self._part
        count = min(self.batch_size, len(order) - start)
        first, stop = rank * count // processes, (rank + 1) * count // processes
        here = slice(start + first, start + stop)
        indices = order[here]
        offsets = mirrored = None
        if drawn is None:
            pixels = self._pixels[indices]
        else:
            offsets, mirrored = (draw[here] for draw in drawn)
            pixels = self._crop(indices, offsets, mirrored)
            offsets, mirrored = offsets.to(self.device), mirrored.to(self.device)
        if pixels.device.type != self.device.type:
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        images = unit_floats(pixels.permute(0, 3, 1, 2), self._format)
        whole = order[start : start + count].to(self.device)
        return Batch(images, self._labels[whole[first:stop]], whole[first:stop], whole, first, offsets, mirrored)

    def _crop(self, indices: Tensor, offsets: Tensor, mirrored: Tensor) -> Tensor:
        """Gather crops from the padded pixels: batch × height × width × channels."""
        _, height, width = self.dataset.image_shape
        rows = offsets[:, :1] + torch.arange(height, device=offsets.device)
        columns = torch.arange(width, device=offsets.device).expand(len(indices), -1)
        columns = offsets[:, 1:] + torch.where(mirrored[:, None], width - 1 - columns, columns)
        return self._pixels[indices[:, None, None], rows[:, :, None], columns[:, None, :]]


def _check_padding(padding: int, mode: str, dataset: Dataset) -> None:
    if mode not in PADDING_MODES:
        raise unknown("padding mode", mode, PADDING_MODES)
    if padding < 0:
        raise InputError(f"padding must be at least 0, not {padding}")
    side = min(dataset.image_shape[1:])
    if mode == "reflect" and padding >= side:
        raise InputError(f"padding {padding} can't be reflected in an image of {side} pixels; at most {side - 1}")


def _pad(pixels: Tensor, padding: int, mode: str) -> Tensor:
    """Pad height and width of batch × height × width × channels."""
    if mode == "zero":
        return F.pad(pixels, (0, 0, padding, padding, padding, padding))
    rows, columns = (_reflected(side, padding) for side in pixels.shape[1:3])
    return pixels[:, rows][:, :, columns]  # F.pad reflects no uint8


def _reflected(side: int, padding: int) -> Tensor:
    position = torch.arange(-padding, side + padding).abs()
    return (side - 1) - (side - 1 - position).abs()


def place(pixels: Tensor, device: torch.device, share: float) -> Tensor:
    """On the device, unless it is a GPU of which they would fill more than `share` of the free memory."""
    if device.type == "cuda" and pixels.nbytes > share * torch.cuda.mem_get_info(device)[0]:
        return pixels
    return pixels.to(device)
