from __future__ import annotations

import torch

from tests.training.methods.small import close, made, parts, perturbed
from tests.training.references.common import make, make_batch, tiny


def test_two_processes_attack_as_one_does() -> None:
    model, batch, method = tiny(), make_batch(), make("trades")
    whole = perturbed(method, model, batch)
    close(torch.cat([perturbed(method, model, part) for part in parts(batch, 4)]), whole)
    assert not torch.equal(whole, batch.images)


def test_the_divergence_is_measured_without_its_weight() -> None:
    light, heavy = (made(make("trades", options={"beta": beta}), tiny(), make_batch()) for beta in (0.5, 2.5))
    divergence = light.update.measured["kl"]
    close(divergence, heavy.update.measured["kl"])
    close(heavy.objective - light.objective, 2 * divergence)
    assert divergence > 1e-4
    assert not divergence.requires_grad
