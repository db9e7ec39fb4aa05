"""Sums per channel over pairs of clean and adversarial activations: one pass, float64, constant memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from coprobe.errors import NotFiniteError
from coprobe.metrics.sums import ImageSums

#: The per-channel sums, over images and positions, in the order of the columns that they become.
SUMS = ("difference_squared", "difference", "clean", "clean_squared", "adversarial", "adversarial_squared")

#: Numbers of a batch that are looked at together: in float64 they fit a CPU's cache, which makes this ten times
#: faster, and on an accelerator they bound the memory that one batch takes.
_PORTION = {"cpu": 2**18}
_PORTION_ELSEWHERE = 2**24


def image_sums(clean: Tensor, adversarial: Tensor) -> Tensor:
    """Sums over the positions of each image, per channel, of the quantities named in `SUMS`.

    Args:
        clean: activations (batch, channels, …) at clean images.
        adversarial: activations of the same shape at their adversarial twins.

    Returns:
        Float64 (batch, 6, channels).
    """
    return torch.cat([_sums(*portion) for portion in _portions(clean, adversarial)])


def differences_squared(clean: Tensor, adversarial: Tensor) -> Tensor:
    """V of Eq. 6 per image: the squared L2 norm of the difference in each channel, float64 (batch, channels).

    Args:
        clean: activations (batch, channels, …).
        adversarial: activations of the same shape.
    """
    return torch.cat([torch.sub(b, a, out=room).square_().sum(2) for a, b, room in _portions(clean, adversarial)])


def _portions(clean: Tensor, adversarial: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Pairs of few images each, float64 (images, channels, positions), with room for numbers of that shape.

    All are in the same memory, since to be given new memory costs more than to compute.
    """
    clean, adversarial = (x.reshape(*x.shape[:2], math.prod(x.shape[2:])) for x in (clean, adversarial))
    per_image = max(1, clean.shape[1] * clean.shape[2])
    images = max(1, _PORTION.get(clean.device.type, _PORTION_ELSEWHERE) // per_image)
    rooms = [torch.empty_like(clean[:images], dtype=torch.float64) for _ in range(3)]
    for pair in zip(clean.split(images), adversarial.split(images), strict=True):
        a, b, room = (memory[: len(pair[0])] for memory in rooms)
        yield a.copy_(pair[0]), b.copy_(pair[1]), room


def _sums(clean: Tensor, adversarial: Tensor, room: Tensor) -> Tensor:
    """The sums over the positions of (images, channels, positions), in the order of `SUMS`."""
    torch.sub(adversarial, clean, out=room)
    difference, values = room.sum(2), (clean.sum(2), adversarial.sum(2))
    squared = [memory.square_().sum(2) for memory in (room, clean, adversarial)]  # the first is V of Eq. 6
    return torch.stack([squared[0], difference, values[0], squared[1], values[1], squared[2]], 1)


class ChannelAccumulator:
    """Accumulates `image_sums` at one node, and the norm of each image's whole difference (the summand of Eq. 5)."""

    def __init__(self) -> None:
        self._sums = ImageSums()
        self._norms = ImageSums()
        self._counts = {"images": 0, "positions": 0}

    def update(self, start: int, clean: Tensor, adversarial: Tensor) -> None:
        """Add a batch of activations (batch, channels, …), both of the same shape, from image `start` on."""
        self.add(start, image_sums(clean, adversarial), math.prod(clean.shape[2:]))

    def add(self, start: int, sums: Tensor, positions: int) -> None:
        """Add the `image_sums` of a batch, over so many positions, from image `start` on."""
        self._norms.add(start, sums[:, 0].sum(1).sqrt())
        self._sums.add(start, sums)
        self._count(len(sums), positions)

    def _count(self, images: int, positions: int) -> None:
        # 0 positions are those of a process without images
        positions = positions or self._counts["positions"]
        self._counts = {"images": self._counts["images"] + images, "positions": positions}

    @property
    def state(self) -> Any:
        """What was accumulated, on the host."""
        return self._sums.state, self._norms.state, self._counts

    def merge_state(self, state: Any) -> None:
        """Add the `state` of an accumulator that saw other images."""
        sums, norms, counts = state
        self._sums.merge_state(sums)
        self._norms.merge_state(norms)
        self._count(**counts)

    def compute(self) -> dict[str, Any]:
        """The sums as NumPy arrays, and `images`, `positions` (H·W) and `norm` as numbers.

        Raises:
            NotFiniteError: an activation was not finite.
        """
        sums, norm = self._sums.total(), self._norms.total()
        assert sums is not None and norm is not None
        if not (sums.isfinite().all() and norm.isfinite()):
            raise NotFiniteError(
                "activations are not finite (NaN or infinite), so the statistics are undefined; "
                "check the weights and --mean/--std"
            )
        return {**dict(zip(SUMS, sums.numpy(), strict=True)), **self._counts, "norm": float(norm)}
