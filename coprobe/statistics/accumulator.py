"""Per-channel sums over pairs of clean and adversarial activations: one pass, float64, constant memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from coprobe.errors import RunError

#: The per-channel sums, over images and positions, in the order of the columns that they become.
SUMS = (
    "difference_squared",
    "difference",
    "clean",
    "clean_squared",
    "adversarial",
    "adversarial_squared",
)


#: Numbers of a batch that are looked at together: in float64 they fit a CPU's cache, which makes this ten times
#: faster, and on an accelerator they bound the memory that one batch takes.
_PORTION = {"cpu": 2**18}
_PORTION_ELSEWHERE = 2**24


def channel_sums(clean: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
    """Sums over images and positions, per channel, of the quantities named in `SUMS`.

    Args:
        clean: activations (batch, channels, …) at clean images.
        adversarial: activations of the same shape at their adversarial twins.

    Returns:
        Float64 tensors (channels,); `norm`, a float64 scalar, is the sum over images of the unsquared L2
        norm of the whole difference (the summand of Eq. 5).
    """
    portions = [_sums(*pair) for pair in _portions(clean, adversarial)]
    return {name: torch.stack([portion[name] for portion in portions]).sum(0) for name in portions[0]}


def differences_squared(clean: Tensor, adversarial: Tensor) -> Tensor:
    """V of Eq. 6 per image: the squared L2 norm of the difference in each channel, float64 (batch, channels).

    Args:
        clean: activations (batch, channels, …).
        adversarial: activations of the same shape.
    """
    return torch.cat([_squared(b.double() - a.double()) for a, b in _portions(clean, adversarial)])


def _portions(clean: Tensor, adversarial: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of few images each, (images, channels, positions)."""
    clean, adversarial = (x.reshape(*x.shape[:2], math.prod(x.shape[2:])) for x in (clean, adversarial))
    per_image = max(1, clean.shape[1] * clean.shape[2])
    images = max(1, _PORTION.get(clean.device.type, _PORTION_ELSEWHERE) // per_image)
    return zip(clean.split(images), adversarial.split(images), strict=True)


def _squared(difference: Tensor) -> Tensor:
    return torch.linalg.vector_norm(difference, dim=2).square()


def _sums(clean: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
    """The sums over (images, channels, positions)."""
    clean, adversarial = clean.double(), adversarial.double()
    difference = adversarial - clean
    squared = _squared(difference)  # images, channels: V of Eq. 6
    return {
        "difference_squared": squared.sum(0),
        "difference": difference.sum(2).sum(0),
        "clean": clean.sum(2).sum(0),
        "clean_squared": _squared(clean).sum(0),
        "adversarial": adversarial.sum(2).sum(0),
        "adversarial_squared": _squared(adversarial).sum(0),
        "norm": squared.sum(1).sqrt().sum(),
    }


class ChannelAccumulator(Metric):  # type: ignore[misc]
    """Accumulates `channel_sums` at one node; merges across shards and processes by addition.

    Args:
        channels: number of channels N at the node.
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False
    images: Tensor
    norm: Tensor

    def __init__(self, channels: int, **settings: Any) -> None:
        super().__init__(**settings)
        for name in SUMS:
            self.add_state(name, torch.zeros(channels, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("norm", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("positions", torch.zeros((), dtype=torch.int64), dist_reduce_fx="max")

    def update(self, clean: Tensor, adversarial: Tensor) -> None:
        """Add a batch of activations (batch, channels, …), both of the same shape."""
        for name, value in channel_sums(clean, adversarial).items():
            setattr(self, name, getattr(self, name) + value)
        self.images += len(clean)
        self.positions = torch.full_like(self.images, math.prod(clean.shape[2:]))

    def compute(self) -> dict[str, Any]:
        """The sums as NumPy arrays, and `images`, `positions` (H·W) and `norm` as numbers.

        Raises:
            RunError: an activation was not finite.
        """
        sums = {name: getattr(self, name).cpu().numpy() for name in SUMS}
        if not all(torch.isfinite(getattr(self, name)).all() for name in (*SUMS, "norm")):
            raise RunError(
                "activations are not finite (NaN or infinite), so the statistics are undefined; "
                "check the weights and --mean/--std"
            )
        numbers = {"images": int(self.images), "positions": int(self.positions), "norm": float(self.norm)}
        return {**sums, **numbers}
