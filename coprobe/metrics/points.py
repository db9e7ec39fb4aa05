"""Points near images: the model's logits, loss and input gradient there, and the angle between two gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from coprobe.attacks.input_gradient import input_gradient
from coprobe.core.engine import frozen


class Point(NamedTuple):
    """What a model says at one point per image.

    Attributes:
        logits: batch × classes.
        loss: cross-entropy with the label, float64 (batch,).
        gradient: of the loss with respect to the point, float64, batch × (channels · height · width).
    """

    logits: Tensor
    loss: Tensor
    gradient: Tensor


def point_at(model: nn.Module, x: Tensor, y: Tensor) -> Point:
    """The model's logits, loss and input gradient at `x`: one pass forward and backward, in evaluation mode."""
    with frozen(model):
        gradient, logits = input_gradient(model, x, lambda logits: cross_entropy(logits, y, reduction="none"))
    return Point(logits, loss_of(logits, y), gradient.flatten(1).double())


def loss_of(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy per image, float64 (batch,)."""
    return cross_entropy(logits.double(), y, reduction="none")


def alignment(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The cosine between two vectors per image, float64 (batch,), and whether there is one: neither vector is zero.

    Where there is none, 0 stands for it.
    """
    counted = first.any(1) & second.any(1)
    return torch.where(counted, cosine_similarity(first, second), 0.0), counted
