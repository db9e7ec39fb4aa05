"""One update of the training loop on one batch, and what to compare it with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from coprobe.data import Batch, Loader
from coprobe.training import Method, Recipe
from coprobe.training.loop import TrainingLoop
from coprobe.training.regularizers import Regularizer
from tests.training.references.common import setting

LR, MOMENTUM, DECAY = 0.1, 0.9, 5e-4


class OneBatch(Loader):
    """Gives the same batch over and over."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(setting().dataset, 6)
        self.batch = batch

    def batches(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        return iter([self.batch])


def loop_for(
    model: nn.Module, method: Method, batch: Batch, terms: Sequence[Regularizer] = (), **knobs: Any
) -> TrainingLoop:
    recipe = Recipe(lr=LR, momentum=MOMENTUM, weight_decay=DECAY, epochs=10, schedule="constant", **knobs)
    return TrainingLoop(recipe, model, method, terms, OneBatch(batch), method.setting)


def one_update(loop: TrainingLoop) -> None:
    """The first update of the epoch at which the method stands, without beginning the epoch for the method."""
    loop.number = 0
    method_begins = loop.method.begin_epoch
    loop.method.begin_epoch = lambda epoch: None  # type: ignore[method-assign]
    next(loop.run_epoch())
    loop.method.begin_epoch = method_begins  # type: ignore[method-assign]


def literal_update(model: nn.Module, loss: Tensor) -> None:
    """SGD with momentum from rest."""
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.sub_(LR * (gradient + DECAY * parameter))


def assert_same_state(model: nn.Module, slow: nn.Module) -> None:
    for (key, fast_value), slow_value in zip(model.state_dict().items(), slow.state_dict().values(), strict=True):
        torch.testing.assert_close(fast_value, slow_value, rtol=0, atol=1e-8, msg=lambda m, key=key: f"{key}: {m}")
