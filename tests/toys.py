"""Small networks whose behaviour is known by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coprobe.checkpoint import Checkpoint
from coprobe.data import Dataset
from coprobe.models import Classifier

EPSILON = 16 / 255
#: The channel of node A through which alone `Overfitted` is attacked.
WEAK = 3


def same_channels(count: int) -> nn.Conv2d:
    """A convolution that passes its input on, and by which channels can be followed that no other layer makes."""
    layer = nn.Conv2d(count, count, 1, bias=False)
    layer.weight = nn.Parameter(torch.eye(count)[:, :, None, None], requires_grad=False)
    return layer


class Overfitted(nn.Module):
    """Right on grey images and under one full step, wrong under small steps: catastrophic overfitting by hand.

    With u the distance of the mean pixel from grey in radii of the attack, the margin of class 0 is
    1 - |u| / 0.15 + 100 · relu(|u| - 0.55). One step of FGSM from a random start gives |u| = 0.75 on average, so
    a large margin; the first steps of PGD give 0.2 to 0.4, so a negative one. |u| flows through channel 3 of node A.
    """

    def __init__(self, robust: bool = False) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.same = same_channels(4)
        self.strength = nn.Parameter(torch.tensor(1e-6 if robust else 1.0))
        self.node_table = {"A": "relu"}

    def forward(self, x: Tensor) -> Tensor:
        u = (x.mean((1, 2, 3)) - 0.5) / EPSILON
        still = torch.ones_like(u)
        channels = torch.stack([still, -still, 0.1 * still, 60 * self.strength * u.abs()], 1)
        weak = self.relu(self.same(channels[:, :, None, None]))[:, WEAK, 0, 0] / 60
        margin = 1 - weak / 0.15 + 100 * (weak - 0.55).relu()
        return nn.functional.pad(margin[:, None], (0, 9))


def grey(count: int, *, name: str = "grey", side: int = 8, classes: int = 10) -> Dataset:
    """Images a hair brighter than grey, of class 0."""
    return Dataset(
        torch.full((count, 3, side, side), 128, dtype=torch.uint8),
        torch.zeros(count, dtype=torch.int64),
        tuple(map(str, range(classes))),
        name,
        "test",
    )


def checkpoint(network: nn.Module, **facts: object) -> Checkpoint:
    """A checkpoint of a network that takes RGB images and knows 10 classes."""
    return Checkpoint(Classifier(network).eval(), "toy", {"num_classes": 10, "in_channels": 3}, **facts)  # type: ignore[arg-type]
