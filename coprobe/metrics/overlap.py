"""Whether the salient channels are the same for every image (claim C07 of the paper)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import pandas as pd
import torch
from torch import Tensor, nn

from coprobe.attacks.examples import CLEAN, AdversarialBatch
from coprobe.core.engine import frozen
from coprobe.errors import InputError, RunError
from coprobe.metrics.accumulator import differences_squared
from coprobe.metrics.metric import Measurement, survey
from coprobe.nodes import CHECKED, check_neutral, record


class Overlap(Measurement[pd.DataFrame]):
    """Compares the `top` channels by V (Eq. 6) of single images and of halves of the images.

    Of channels with the same V the one with the smaller index comes first.

    Args:
        model: the model, run in evaluation mode without gradients and left as it was.
        node: name of a node, see `coprobe.nodes`.
        attack: the spec under which the batches hold the adversarial images.
        top: number of channels.

    Raises:
        InputError: in `update`, unknown node; in `result`, `top` below 1 or above the number of channels, or fewer
            than two images.
        RunError: in `update`, logits that recording changes; in `result`, activations that are not finite.
    """

    def __init__(self, model: nn.Module, node: str, attack: str, *, top: int = 5) -> None:
        self._model, self._node, self._attack, self._top = model, node, attack, top
        self._moved: dict[int, Tensor] = {}

    def update(self, batch: AdversarialBatch) -> None:
        """Keep V of every image and channel: the one thing here that grows with the images."""
        if not self._moved:
            check_neutral(self._model, batch.images[CLEAN][:CHECKED], [self._node])
        with frozen(self._model), torch.no_grad(), record(self._model, [self._node]) as seen:
            self._model(batch.images[CLEAN])
            clean = seen[self._node]
            self._model(batch.images[self._attack])
        self._moved[batch.start] = differences_squared(clean, seen[self._node])

    @property
    def state(self) -> dict[int, Tensor]:
        """V, float64 (batch, channels), by the index of the first image."""
        return {start: moved.cpu() for start, moved in self._moved.items()}

    def absorb(self, state: dict[int, Tensor]) -> None:
        """Take the other images over."""
        self._moved |= state

    def result(self) -> pd.DataFrame:
        """One row.

        node, attack, top, images, jaccard_images (mean over images of the Jaccard index of the image's top channels
        with those of all images), jaccard_halves (of images of even and of odd index).
        """
        parts = [moved for _, moved in sorted(self.state.items())]
        moved, top = torch.cat(parts) if parts else torch.zeros(0, 0), self._top
        if len(moved) < 2:
            raise InputError(f"{len(moved)} images have no two halves to compare; raise --limit")
        if not 1 <= top <= moved.shape[1]:
            raise InputError(
                f"top {top}: node '{self._node}' has {moved.shape[1]} channels; choose from 1 to that many"
            )
        if not moved.isfinite().all():
            raise RunError(
                "activations are not finite (NaN or infinite), so the overlap is undefined; "
                "check the weights and --mean/--std"
            )
        everyone, even, odd = (_top(half.sum(0, keepdim=True), top) for half in (moved, moved[::2], moved[1::2]))
        row = {
            "node": self._node,
            "attack": self._attack,
            "top": top,
            "images": len(moved),
            "jaccard_images": float(_jaccard(_top(moved, top), everyone).mean()),
            "jaccard_halves": float(_jaccard(even, odd)),
        }
        return pd.DataFrame([row])


def collect_overlap(
    model: nn.Module, batches: Iterable[AdversarialBatch], node: str, attack: str, *, top: int = 5
) -> pd.DataFrame:
    """`Overlap` of these batches, which may be an `AdversarialExamples`."""
    (frame,) = survey(batches, [Overlap(model, node, attack, top=top)])
    return cast(pd.DataFrame, frame)


def _top(moved: Tensor, top: int) -> Tensor:
    """Which channels are the `top` ones of each row, bool (rows, channels)."""
    best = moved.argsort(dim=1, descending=True, stable=True)[:, :top]
    return torch.zeros_like(moved, dtype=torch.bool).scatter_(1, best, value=True)


def _jaccard(one: Tensor, other: Tensor) -> Tensor:
    """Common channels over those of either, float64, per row."""
    return (one & other).sum(1).double() / (one | other).sum(1)
