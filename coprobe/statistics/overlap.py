"""Whether the salient channels are the same for every image (claim C07 of the paper)."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
import torch
from torch import Tensor, nn

from coprobe.attacks.examples import CLEAN, AdversarialBatch
from coprobe.engine import frozen
from coprobe.errors import InputError, RunError
from coprobe.nodes import check_neutral, record
from coprobe.statistics.accumulator import differences_squared


def collect_overlap(
    model: nn.Module, batches: Iterable[AdversarialBatch], node: str, attack: str, *, top: int = 5
) -> pd.DataFrame:
    """Compare the `top` channels by V (Eq. 6) of single images and of halves of the images: one pass.

    Of channels with the same V the one with the smaller index comes first.

    Args:
        model: the model, run in evaluation mode without gradients and left as it was.
        batches: an `AdversarialExamples`, or any iterable of its batches, in the order of the data set.
        node: name of a node, see `coprobe.nodes`.
        attack: the spec under which the batches hold the adversarial images.
        top: number of channels.

    Returns:
        One row: node, attack, top, images, jaccard_images (mean over images of the Jaccard index of the
        image's top channels with those of all images), jaccard_halves (of images of even and of odd index).

    Raises:
        InputError: unknown node; `top` below 1 or above the number of channels; fewer than two images.
        RunError: activations that are not finite; logits that recording changes.
    """
    parts: list[Tensor] = []
    for batch in batches:
        if not parts:
            check_neutral(model, batch.images[CLEAN], [node])
        with frozen(model), torch.no_grad(), record(model, [node]) as seen:
            model(batch.images[CLEAN])
            clean = seen[node]
            model(batch.images[attack])
            parts.append(differences_squared(clean, seen[node]).cpu())
    moved = torch.cat(parts) if parts else torch.zeros(0, 0)
    if len(moved) < 2:
        raise InputError(f"{len(moved)} images have no two halves to compare; raise --limit")
    if not 1 <= top <= moved.shape[1]:
        raise InputError(f"top {top}: node '{node}' has {moved.shape[1]} channels; choose from 1 to that many")
    if not moved.isfinite().all():
        raise RunError(
            "activations are not finite (NaN or infinite), so the overlap is undefined; "
            "check the weights and --mean/--std"
        )
    everyone, even, odd = (_top(half.sum(0, keepdim=True), top) for half in (moved, moved[::2], moved[1::2]))
    row = {
        "node": node,
        "attack": attack,
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
