"""One update of a method without the training loop, and a batch divided among processes."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from coprobe.data import Batch
from coprobe.training.methods import Method
from coprobe.training.update import AdversarialInputs, Pass, UpdateState
from tests.training.references.common import FIRST, At, state


class Made(NamedTuple):
    """An update before its backward pass."""

    update: UpdateState
    inputs: AdversarialInputs
    final: Pass
    objective: Tensor


def made(method: Method, model: nn.Module, batch: Batch, at: At = FIRST) -> Made:
    """Attack, the update's pass, and what it lowers."""
    update = state(method, model, batch, at, keep_graph=method.keeps_graph)
    inputs = method.perturb(update)
    final = Pass(inputs.images, model(inputs.images), {})
    return Made(update, inputs, final, method.objective(update, inputs, final))


def perturbed(method: Method, model: nn.Module, batch: Batch, at: At = FIRST) -> Tensor:
    """The images to train on."""
    return method.perturb(state(method, model, batch, at)).images


def parts(batch: Batch, first: int) -> list[Batch]:
    """The batch as two processes have it: `first` images and the rest."""
    return [
        replace(batch, images=batch.images[own], labels=batch.labels[own], indices=batch.indices[own], first=own.start)
        for own in (slice(0, first), slice(first, len(batch.images)))
    ]


def shorter(batch: Batch, images: int) -> Batch:
    """A last batch: the first images of this one, and no others anywhere."""
    return replace(parts(batch, images)[0], whole=batch.whole[:images])


def close(own: Tensor | None, expected: Tensor | None) -> None:
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-8)
