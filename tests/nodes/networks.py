"""Two small networks that the tests of nodes look into."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from coprobe.nodes import masked, record

#: Both ways to hook a model at one node.
CONTEXTS: list[Any] = [lambda m, n: record(m, [n]), lambda m, n: masked(m, {n: [0]})]


def plain(inplace: bool = False) -> nn.Sequential:
    """0 conv, 1 BN, 2 ReLU, 3 flatten, 4 linear, 5 ReLU, 6 linear; images 2×4×5, three classes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=inplace),
        nn.Flatten(),
        nn.Linear(120, 7),
        nn.ReLU(inplace=inplace),
        nn.Linear(7, 3),
    ).eval()


class Named(nn.Module):
    """A network with letters, one module that it never calls, and one that passes a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.node_table = {"A": "body.2", "B": "body.5"}
        self.body = plain()
        self.idle = nn.ReLU()
        self.pair = Pair()

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(self.body(x))[0]


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None


def images(batch: int = 3) -> Tensor:
    return torch.rand(batch, 2, 4, 5, generator=torch.Generator().manual_seed(1))
