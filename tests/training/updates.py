"""One update of the training loop on one batch, and what to compare it with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from coprobe.data import Batch, Loader
from coprobe.nodes import record
from coprobe.training import Method, Recipe
from coprobe.training.loop import TrainingLoop
from coprobe.training.regularizers import Regularizer
from tests.training.references.common import FIRST, SEED, At

LR, MOMENTUM, DECAY = 0.1, 0.9, 5e-4


def loop_for(
    model: nn.Module, method: Method, terms: Sequence[Regularizer] = (), *, compiled: bool = False, **knobs: Any
) -> TrainingLoop:
    recipe = Recipe(lr=LR, momentum=MOMENTUM, weight_decay=DECAY, epochs=10, schedule="constant", seed=SEED, **knobs)
    loader = Loader(method.context.dataset, 6)
    return TrainingLoop(recipe, model, method, terms, loader, method.context, compiled=compiled)


def one_update(loop: TrainingLoop, batch: Batch, at: At = FIRST) -> None:
    """This update alone, of an epoch that the method has begun."""
    loop.epoch, loop.number = at
    with record(loop.model, loop.nodes) as recorded:
        loop.update(batch, recorded)


def literal_update(model: nn.Module, loss: Tensor) -> None:
    """SGD with momentum from rest."""
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.sub_(LR * (gradient + DECAY * parameter))


def assert_same_state(model: nn.Module, slow: nn.Module) -> None:
    for (key, fast_value), slow_value in zip(model.state_dict().items(), slow.state_dict().values(), strict=True):
        torch.testing.assert_close(fast_value, slow_value, rtol=0, atol=1e-8, msg=lambda m, key=key: f"{key}: {m}")
