"""Tiny runs on scikit-learn's digits, and what to look at in them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import coprobe
from coprobe.training import Recipe, TrainingCallback

TINY = Recipe(
    data="digits", limit_train=96, held_out=20, width=4, eps_train=26, epochs=2, batch_size=32, lr=0.05, augment="crop"
)
#: One epoch of two updates, measured at one radius.
QUICK = replace(TINY, limit_train=64, epochs=1, eps_also=0)
#: What depends on the machine's mood.
MEASURED = ["seconds", "train_seconds", "images_per_second", "peak_memory_mib"]


def weights(path: Path) -> dict[str, Tensor]:
    return coprobe.load(path).model.network.state_dict()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@dataclass
class Told:
    """Everything that a run says; `after` counts the rows before each message."""

    images: list[int] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    after: list[int] = field(default_factory=list)

    @property
    def callback(self) -> TrainingCallback:
        def hear(message: str) -> None:
            self.messages.append(message)
            self.after.append(len(self.rows))

        return TrainingCallback(self.images.append, self.rows.append, hear)
