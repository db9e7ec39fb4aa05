from __future__ import annotations

import torch

from tests.training.methods.small import assert_follows_reference, close, parts, step_of
from tests.training.references import REFERENCES
from tests.training.references.common import make, make_batch, tiny


def test_an_update_is_the_literal_one() -> None:
    assert_follows_reference("trades", make("trades"), make_batch())


def test_the_attack_leaves_modes_and_running_statistics() -> None:
    model, method = tiny(), make("trades")
    model.relu.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    method.perturb(model, make_batch(), keep_graph=False)
    assert [name for name, module in model.named_modules() if not module.training] == ["relu"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_start_is_of_the_first_pass_with_its_graph_where_asked_for() -> None:
    model, literal_model, batch, method = tiny(), tiny(), make_batch(), make("trades")
    literal = REFERENCES["trades"](literal_model, batch, method)
    perturbed = method.perturb(model, batch, keep_graph=True)
    assert perturbed.start is not None and literal.start_logits is not None
    close(perturbed.start.logits, literal.start_logits)
    model(batch.images)  # changes the running statistics, which the kept graph must not see
    perturbed.start.logits.square().sum().backward()
    (expected,) = torch.autograd.grad(literal.start_logits.square().sum(), literal_model.conv.weight)
    close(model.conv.weight.grad, expected)


def test_two_processes_attack_as_one_does() -> None:
    model, batch, method = tiny(), make_batch(), make("trades")
    whole = method.perturb(model, batch, keep_graph=False).images
    divided = []
    for part in parts(batch, 4):
        method.begin_step(0, 0)
        divided.append(method.perturb(model, part, keep_graph=False).images)
    method.begin_step(0, 0)
    close(torch.cat(divided), method.perturb(model, batch, keep_graph=False).images)
    assert not torch.equal(whole, batch.images)


def test_the_divergence_is_measured_without_its_weight() -> None:
    batch = make_batch()
    (light, loss), (heavy, heavier) = (
        step_of(make("trades", options={"beta": beta}), tiny(), batch) for beta in (0.5, 2.5)
    )
    close(light.measured["kl"], heavy.measured["kl"])
    close(heavier - loss, 2 * light.measured["kl"])
    assert light.measured["kl"] > 1e-4
    assert not light.measured["kl"].requires_grad
