"""Whether the salient channels are the same for every image (claim C07 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor, nn

from coprobe.attacks.examples import CLEAN, AdversarialBatch
from coprobe.core.engine import frozen
from coprobe.errors import InputError, NotFiniteError
from coprobe.metrics.accumulator import differences_squared
from coprobe.metrics.metric import METRICS, AttackMetric
from coprobe.nodes import CHECKED, check_neutral, record


@METRICS.register(
    "overlap",
    summary="whether single images have the same salient channels as all of them",
    source="claim C07",
)
@dataclass(kw_only=True)
class ChannelOverlap(AttackMetric[pd.DataFrame]):
    """Compares the `top` channels by V (Eq. 6) of single images and of halves of the images.

    Of channels with the same V the one with the smaller index comes first.

    Args:
        node: name of a node, see `coprobe.nodes`.
        top: number of channels.

    Raises:
        InputError: in `update`, unknown node; in `compute`, `top` below 1 or above the number of channels, or fewer
            than two images.
        NotFiniteError: in `update`, logits that recording changes; in `compute`, activations that are not finite.
    """

    node: str = "A"
    top: int = 5
    name: ClassVar[str] = "overlap"

    @property
    def nodes(self) -> tuple[str, ...]:
        """The one."""
        return (self.node,)

    def prepare(self, model: nn.Module) -> None:
        """Begin without images."""
        self._model = model
        self._moved: dict[int, Tensor] = {}

    def update(self, batch: AdversarialBatch) -> None:
        """Keep V of every image and channel: the one thing here that grows with the images."""
        if not self._moved:
            check_neutral(self._model, batch.images[CLEAN][:CHECKED], [self.node])
        with frozen(self._model), torch.no_grad(), record(self._model, [self.node]) as seen:
            self._model(batch.images[CLEAN])
            clean = seen[self.node]
            self._model(batch.images[self.attack])
        self._moved[batch.start] = differences_squared(clean, seen[self.node])

    @property
    def state(self) -> dict[int, Tensor]:
        """V, float64 (batch, channels), by the index of the first image."""
        return {start: moved.cpu() for start, moved in self._moved.items()}

    def merge_state(self, state: dict[int, Tensor]) -> None:
        """Take the other images over."""
        self._moved |= state

    def compute(self) -> pd.DataFrame:
        """One row.

        node, attack, top, images, jaccard_images (mean over images of the Jaccard index of the image's top channels
        with those of all images), jaccard_halves (of images of even and of odd index).
        """
        parts = [moved for _, moved in sorted(self.state.items())]
        moved, top = torch.cat(parts) if parts else torch.zeros(0, 0), self.top
        if len(moved) < 2:
            raise InputError(f"{len(moved)} images have no two halves to compare; raise --limit")
        if not 1 <= top <= moved.shape[1]:
            raise InputError(f"top {top}: node '{self.node}' has {moved.shape[1]} channels; choose from 1 to that many")
        if not moved.isfinite().all():
            raise NotFiniteError(
                "activations are not finite (NaN or infinite), so the overlap is undefined; "
                "check the weights and --mean/--std"
            )
        everyone, even, odd = (_top(half.sum(0, keepdim=True), top) for half in (moved, moved[::2], moved[1::2]))
        row = {
            "node": self.node,
            "attack": self.attack,
            "top": top,
            "images": len(moved),
            "jaccard_images": float(_jaccard(_top(moved, top), everyone).mean()),
            "jaccard_halves": float(_jaccard(even, odd)),
        }
        return pd.DataFrame([row])


def _top(moved: Tensor, top: int) -> Tensor:
    """Which channels are the `top` ones of each row, bool (rows, channels)."""
    best = moved.argsort(dim=1, descending=True, stable=True)[:, :top]
    return torch.zeros_like(moved, dtype=torch.bool).scatter_(1, best, value=True)


def _jaccard(one: Tensor, other: Tensor) -> Tensor:
    """Common channels over those of either, float64, per row."""
    return (one & other).sum(1).double() / (one | other).sum(1)
