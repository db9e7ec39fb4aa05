from __future__ import annotations

import copy

import torch

from coprobe.training.memory import Memory
from tests.training.references.common import (
    EPSILON,
    attack_gradient,
    begin,
    clip,
    context,
    make,
    make_batch,
    state,
    tiny,
)


def test_the_memory_follows_the_formula() -> None:
    model, batch, method = tiny(), make_batch(), make("fgsm-mep")
    prior = method.memory("prior").gather().clone()
    assert (prior.abs() - EPSILON).abs().max() < 1e-8  # the corners of the ball
    assert prior.unique().numel() == 2
    momentum = torch.rand(prior.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 1e-3
    scale = 6 * 2 * 4 * 5  # m is kept that many times as large, to fit into half precision
    method.kept["momentum"] = Memory(scale * momentum, torch.float64)

    delta0 = prior[batch.indices]
    gradient, _, _ = attack_gradient(copy.deepcopy(model), batch.images + delta0, batch.labels, 0.6)
    method.perturb(state(method, model, batch))

    expected_momentum, expected_prior = momentum.clone(), prior.clone()
    norm = sum(abs(float(value)) for value in gradient.flatten())
    for row, index in enumerate(batch.indices.tolist()):
        expected_momentum[index] = gradient[row] / norm + 0.3 * momentum[index]
        moved = clip(delta0[row] + EPSILON * expected_momentum[index].sign(), -EPSILON, EPSILON)
        expected_prior[index] = clip(batch.images[row] + moved, 0, 1) - batch.images[row]
    torch.testing.assert_close(method.memory("momentum").gather(), scale * expected_momentum, rtol=0, atol=1e-12)
    torch.testing.assert_close(method.memory("prior").gather(), expected_prior, rtol=0, atol=1e-12)


def test_the_memory_is_reset_every_reset_every_epochs() -> None:
    method = make("fgsm-mep", options={"reset-every": 3})
    first = method.memory("prior").gather().clone()
    method.memory("momentum").write(make_batch(), torch.ones(6, *context().dataset.image_shape))
    begin(method, 1)
    assert method.memory("momentum").gather().sum() == 6 * 2 * 4 * 5
    begin(method, 3)
    assert method.memory("momentum").gather().sum() == 0
    assert not torch.equal(method.memory("prior").gather(), first)
