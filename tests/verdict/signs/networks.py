"""Small networks for signs, images for them, and what one sign measures on them."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor, nn

from coprobe.attacks import AdversarialExamples, Ball, parse
from coprobe.data import Dataset
from coprobe.verdict.signs import ImageSign, ImageSigns

EPSILON, SEED, SIDE, CLASSES = 8 / 255, 3, 6, 4
FREQUENCY = 16


def wave(z: Tensor) -> Tensor:
    """Up and down in straight lines, so that no digit depends on how a library computes a sine."""
    turns = FREQUENCY * z
    return 4 * (turns - turns.floor() - 0.5).abs() - 1


class Convolving(nn.Module):
    """Two convolutions with a wave between them, so that the loss bends within the ball."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 10, 3, padding=1)
        self.relu = nn.ReLU()
        self.second = nn.Conv2d(10, 6, 3, stride=2, padding=1)
        self.relu2 = nn.ReLU()
        self.head = nn.Conv2d(6, CLASSES, 3)  # a convolution, since matrix products round differently in odd batches
        self.head.weight.data *= 10
        self.node_table = {"A": "relu", "B": "relu2"}

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu2(self.second(self.relu(wave(self.first(x)))))).flatten(1)


def images(count: int, *, low: float = 0.2, high: float = 0.8) -> Tensor:
    """Images whose pixels are multiples of 1/255, so that a data set can hold them."""
    drawn = torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return (255 * (low + (high - low) * drawn)).round() / 255


def dataset(x: Tensor, labels: Tensor, classes: int = CLASSES) -> Dataset:
    return Dataset((255 * x).round().to(torch.uint8), labels, tuple(map(str, range(classes))), "made", "test")


def predicted(model: nn.Module, x: Tensor) -> Tensor:
    """The model's own predictions, as labels with which it is right everywhere."""
    with torch.no_grad():
        return model(x).argmax(1)


def measured(
    model: nn.Module,
    data: Dataset,
    *signs: ImageSign,
    epsilon: float = EPSILON,
    batch_size: int = 64,
    probing: str = "pgd:10:rule=always",
    places: tuple[str, ...] = (),
) -> pd.DataFrame:
    """The values per image."""
    metric = ImageSigns(signs=signs, probing=probing, places=places).at(Ball(epsilon), SEED)
    attacks = [parse(spec, epsilon) for spec in metric.attacks]
    examples = AdversarialExamples(model, data, attacks, batch_size=batch_size, seed=SEED)
    return metric.measure(model, examples)


def column(frame: pd.DataFrame, quantity: str, at: str = "", sign: str = "") -> list[float]:
    """The values of one quantity, in the order of the images."""
    rows = frame[(frame["quantity"] == quantity) & (frame["at"] == at)]
    return list(rows[rows["sign"] == sign]["value"] if sign else rows["value"])
