"""Images that a thread decodes while the first of them are already worked on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

Seen = Callable[[np.ndarray, int], None]
"""Told after every image which array it is in (uint8, batch × channels × height × width), and how many are there."""


def unseen(pixels: np.ndarray, count: int) -> None:
    """Nobody waits for single images."""


class Whole(Protocol):
    """What holds images, all of them."""

    @property
    def images(self) -> Tensor:
        """uint8, batch × channels × height × width."""


W = TypeVar("W", bound=Whole)


class Arriving(Generic[W]):
    """The images of a data set on their way: each can be had as soon as it is there.

    It is made once the first image is there, or all are. If the thread fails, whoever asks for images from then on is
    told why, whichever they are. A program that ends does not wait for the rest.

    Args:
        decode: makes the data set, and calls what it is given after every image, in the order of the data set.
    """

    def __init__(self, decode: Callable[[Seen], W]) -> None:
        self._whole: Future[W] = Future()
        self._news = threading.Condition()
        self._count = 0
        self._pixels = torch.empty(0)
        threading.Thread(target=self._run, args=(decode,), name="coprobe-decoder").start()
        self._wait_for(1)

    @property
    def ended(self) -> bool:
        """Whether all are there, or none will come any more."""
        return self._whole.done()

    @property
    def shape(self) -> torch.Size:
        """Of all images, batch × channels × height × width, once the first is there."""
        return self._pixels.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the images, once the first is there."""
        return self._pixels.dtype

    def whole(self) -> W:
        """The data set, once all images are there; raises what stopped the thread."""
        return self._whole.result()

    def part(self, start: int, stop: int) -> Tensor:
        """Images start … stop − 1, once these are there; raises what stopped the thread, be it further on."""
        self._wait_for(stop)
        return self.whole().images[start:stop] if self.ended else self._pixels[start:stop]

    def _wait_for(self, count: int) -> None:
        with self._news:
            self._news.wait_for(lambda: self._count >= count or self.ended)

    def _run(self, decode: Callable[[Seen], W]) -> None:
        """What the thread does."""
        try:
            self._whole.set_result(decode(self._seen))
        except BaseException as error:  # raised where images are asked for
            self._whole.set_exception(error)
        with self._news:
            self._news.notify_all()

    def _seen(self, pixels: np.ndarray, count: int) -> None:
        if not threading.main_thread().is_alive():
            raise SystemExit
        with self._news:
            if not self._count:
                self._pixels = torch.from_numpy(pixels)
            self._count = count
            self._news.notify_all()
