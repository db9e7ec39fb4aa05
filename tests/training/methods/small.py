"""One update of a method without the training loop, and a batch divided among processes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from coprobe.data import Batch
from coprobe.training.methods import Method
from coprobe.training.step import Pass, Step
from tests.training.references import REFERENCES
from tests.training.references.common import Literal, Tiny, tiny


def step_of(method: Method, model: Tiny, batch: Batch) -> tuple[Step, Tensor]:
    """The update in the making and the objective."""
    perturbed = method.perturb(model, batch, keep_graph=False)
    final = Pass(model(perturbed.images), {})
    step = Step(model, batch, perturbed, perturbed.images, final, method.loss)
    return step, method.objective(step)


def parts(batch: Batch, first: int) -> list[Batch]:
    """The batch as two processes have it: `first` images and the rest."""
    return [
        replace(batch, images=batch.images[own], labels=batch.labels[own], indices=batch.indices[own], first=own.start)
        for own in (slice(0, first), slice(first, len(batch.images)))
    ]


def shorter(batch: Batch, images: int) -> Batch:
    """A last batch: the first images of this one, and no others anywhere."""
    return replace(parts(batch, images)[0], whole=batch.whole[:images])


def assert_follows_reference(name: str, method: Method, batch: Batch) -> Literal:
    """Images, loss, gradients and running statistics are those of the reference, to 1e-8."""
    model, literal_model = tiny(), tiny()
    literal = REFERENCES[name](literal_model, batch, method)
    step, loss = step_of(method, model, batch)
    literal.loss.backward()
    loss.backward()
    close(step.images, literal.images)
    close(loss, literal.loss)
    for (key, own), expected in zip(model.named_parameters(), literal_model.parameters(), strict=True):
        assert own.grad is not None, key
        close(own.grad, expected.grad)
    for own, expected in zip(model.state_dict().values(), literal_model.state_dict().values(), strict=True):
        close(own, expected)
    return literal


def close(own: Tensor, expected: Tensor | None) -> None:
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-8)
