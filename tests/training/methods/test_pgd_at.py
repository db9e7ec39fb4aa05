from __future__ import annotations

import pytest
import torch

from coprobe.errors import InputError
from tests.training.methods.small import assert_follows_reference, close
from tests.training.references import REFERENCES
from tests.training.references.common import EPSILON, make, make_batch, tiny


def test_an_update_is_the_literal_one() -> None:
    assert_follows_reference("pgd-at", make("pgd-at"), make_batch())


def test_start_is_of_the_first_pass_with_its_graph_where_asked_for() -> None:
    model, literal_model, batch, method = tiny(), tiny(), make_batch(), make("pgd-at")
    literal = REFERENCES["pgd-at"](literal_model, batch, method)
    perturbed = method.perturb(model, batch, keep_graph=True)
    assert perturbed.start is not None
    assert literal.start_logits is not None
    close(perturbed.start.logits, literal.start_logits)
    perturbed.start.logits.square().sum().backward()
    (expected,) = torch.autograd.grad(literal.start_logits.square().sum(), literal_model.conv.weight)
    close(model.conv.weight.grad, expected)
    perturbed = method.perturb(model, batch, keep_graph=False)
    assert perturbed.start is not None
    with pytest.raises(RuntimeError, match="second time"):
        perturbed.start.logits.sum().backward()


def test_iterations_and_step_size_limit_how_far_it_goes() -> None:
    assert make("pgd-at").alpha == 2 / 255  # whatever ε
    batch, model = make_batch(), tiny()
    method = make("pgd-at", options={"iterations": 2}, step_size=0.001)
    still = make("pgd-at", options={"iterations": 1}, step_size=0.0)
    start = still.perturb(model, batch, keep_graph=False).images
    moved = (method.perturb(model, batch, keep_graph=False).images - start).abs()
    assert 0.0019 < moved.max() < 0.0020001
    assert (start - batch.images).abs().max() > 0.9 * EPSILON


def test_no_step_is_refused() -> None:
    with pytest.raises(InputError, match="method pgd-at: option iterations must be at least 1, not 0"):
        make("pgd-at", options={"iterations": 0})
