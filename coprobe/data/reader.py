"""Ranges of a data set as floats on the device, the next one made ready while the caller computes."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from coprobe.data.dataset import Dataset
from coprobe.data.loader import place
from coprobe.errors import InputError

SHARE = 0.1
"""Of a GPU's free memory, what images may fill that only wait there; the rest is for the work on them."""


class _Ready(NamedTuple):
    images: Tensor
    labels: Tensor
    uploaded: torch.cuda.Event | None


class Reader:
    """Read a data set range by range, in order or not.

    On an accelerator the images stay as uint8, unless they would fill more than `SHARE` of a GPU's free memory.
    Else every range is read from host memory, and the one that will follow it (as long, or up to the end) by a thread
    meanwhile: reading the disk, conversion and upload take place while the caller computes. At most two ranges are
    held, whatever the size of the data set.

    The thread ends with `close`, with the `with` block, with the reader, or with the program. A closed reader reads
    on, but not ahead.

    Args:
        dataset: the images.
        device: where they are to be.
        ahead: read the next range before it is asked for.
    """

    def __init__(self, dataset: Dataset, device: str | torch.device = "cpu", ahead: bool = True) -> None:
        self.dataset = dataset
        self.device = torch.device(device)
        self._labels = dataset.labels.to(self.device)
        self._placed = place(dataset.images, self.device, SHARE)
        ahead = ahead and self._placed.device.type == "cpu"
        self._thread = ThreadPoolExecutor(1, "coprobe-reader") if ahead else None
        self._stream = torch.cuda.Stream(self.device) if ahead and self.device.type == "cuda" else None
        self._next: tuple[tuple[int, int], Future[_Ready]] | None = None

    def __call__(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Images start … stop − 1 and their labels.

        Returns:
            float32 in [0, 1], (stop − start) × channels × height × width, contiguous; and int64, stop − start.
            Both are on the device.

        Raises:
            InputError: no such range.
            Exception: whatever stopped the thread that read this range ahead.
        """
        total = len(self.dataset)
        if not 0 <= start < stop <= total:
            raise InputError(f"{self.dataset.name}: has no images {start} to {stop - 1}, only 0 to {total - 1}")
        ready = self._take(start, stop)
        if self._thread and stop < total:
            following = stop, min(2 * stop - start, total)
            self._next = following, self._thread.submit(self._prepare, *following)
        return ready or self._read(start, stop)

    def close(self) -> None:
        """End the thread, and wait until it has."""
        thread, self._thread, self._next = self._thread, None, None
        if thread:
            thread.shutdown(cancel_futures=True)

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, start: int, stop: int) -> tuple[Tensor, Tensor] | None:
        """What the thread has read, if it is this range."""
        following, self._next = self._next, None
        if following is None:
            return None
        if following[0] != (start, stop):
            following[1].cancel()
            return None
        images, labels, uploaded = following[1].result()
        if uploaded is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(uploaded)
            images.record_stream(current)  # else its memory would go back to the other stream while in use here
        return images, labels

    def _prepare(self, start: int, stop: int) -> _Ready:
        """What the thread does."""
        if self._stream is None:
            return _Ready(*self._read(start, stop), None)
        with torch.cuda.stream(self._stream):
            return _Ready(*self._read(start, stop), self._stream.record_event())

    def _read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        pixels, labels = self._placed[start:stop], self._labels[start:stop]
        if self.device.type == "cpu":
            # By torch, this thread would get a team of its own, which competes with the caller's for the cores.
            images = torch.empty(pixels.shape, dtype=torch.float32)
            np.divide(pixels.numpy(), np.float32(255), out=images.numpy(), dtype=np.float32)
            return images, labels
        if pixels.device.type == "cpu":
            pixels = pixels.pin_memory() if self.device.type == "cuda" else pixels
            pixels = pixels.to(self.device, non_blocking=True)
        return pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255), labels
