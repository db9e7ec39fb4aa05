from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from coprobe.core.processes import Processes
from coprobe.data import Batch
from coprobe.errors import InputError
from coprobe.training.methods import Method
from tests.training.methods.small import close, made, parts, shorter
from tests.training.references.common import (
    EPSILON,
    SHAPE,
    Tiny,
    clip,
    context,
    make,
    make_batch,
    soft_cross_entropy,
    state,
    tiny,
)

BATCHES = [make_batch(4), make_batch(5), shorter(make_batch(6), 4), make_batch(7)]


def updated(method: Method, model: Tiny, batch: Batch) -> Tensor:
    """The images that one whole update saw."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.zero_grad()
    update, inputs, _, objective = made(method, model, batch)
    objective.backward()
    method.after_backward(update, inputs)
    optimizer.step()
    return inputs.images.detach()


def test_delta_goes_on_over_replays_and_batches() -> None:
    method, model, literal = make("free", options={"replays": 3}), tiny(), tiny()
    delta = torch.zeros(6, *SHAPE, dtype=torch.float64)
    left_range = False
    for batch in BATCHES:
        x, count = batch.images, len(batch.images)
        for _ in range(method.updates_per_batch):
            images = (x + delta[:count]).requires_grad_()
            left_range |= bool((images < 0).any())
            loss = soft_cross_entropy(literal(images), batch.labels)
            *weights, gradient = torch.autograd.grad(loss, [*literal.parameters(), images])
            delta[:count] = clip(delta[:count] + EPSILON * gradient.sign(), -EPSILON, EPSILON)
            delta[:count] = clip(delta[:count], 0 - x, 1 - x)
            with torch.no_grad():
                for parameter, change in zip(literal.parameters(), weights, strict=True):
                    parameter.sub_(0.1 * change)
            close(updated(method, model, batch), images.detach())
            close(method.kept["delta"], delta)
    for own, expected in zip(model.state_dict().values(), literal.state_dict().values(), strict=True):
        close(own, expected)
    assert left_range  # a new batch's first pass is not clamped


def test_an_interrupted_run_goes_on_with_its_delta() -> None:
    whole, model = make("free"), tiny()
    updated(whole, model, BATCHES[0])
    again = make("free")
    again.load(whole.state())
    second = tiny()
    second.load_state_dict(model.state_dict())
    assert torch.equal(updated(whole, model, BATCHES[1]), updated(again, second, BATCHES[1]))


@dataclass(frozen=True)
class Overheard(Processes):
    """Notes what this process gives to the sum, and adds what the other one gave."""

    given: list[Tensor] = field(default_factory=list)
    other: list[Tensor] = field(default_factory=list)

    def sum(self, tensor: Tensor) -> Tensor:
        self.given.append(tensor.clone())
        return tensor + self.other[-1] if self.other else tensor


@pytest.mark.parametrize("batch", [BATCHES[1], BATCHES[2]], ids=["whole", "last"])
def test_two_processes_keep_the_same_delta_as_one(batch: Batch) -> None:
    alone = make("free")
    updated(alone, tiny(), BATCHES[0])
    kept = alone.state()
    updated(alone, tiny().eval(), batch)  # in evaluation mode the gradient of an image is its own
    given: list[Tensor] = []
    for rank, part in [(0, parts(batch, 3)[0]), (1, parts(batch, 3)[1]), (0, parts(batch, 3)[0])]:
        method = make("free")
        processes = Overheard(rank, 2, other=given[-1:])
        method.prepare(replace(context(), processes=processes))
        method.load(kept)
        updated(method, tiny().eval(), part)
        given += processes.given
    close(method.kept["delta"], alone.kept["delta"])


def test_a_run_begins_with_zero_and_has_no_attack_to_compare_with() -> None:
    method = make("free")
    assert method.kept["delta"].shape == (6, *SHAPE)
    assert not method.kept["delta"].any()
    assert method.updates_per_batch == 8
    assert not method.attacks
    assert method.perturb(state(method, tiny(), make_batch())).start is None


def test_no_replay_is_refused() -> None:
    with pytest.raises(InputError, match="method free: option replays must be at least 1, not 0"):
        make("free", options={"replays": 0})
