from __future__ import annotations

import pytest
import torch

from coprobe.errors import InputError
from coprobe.training.methods.nuat import nuclear_norm
from tests.training.methods.small import assert_follows_reference, close, parts, step_of
from tests.training.references import REFERENCES
from tests.training.references.common import make, make_batch, tiny


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("epoch", [0, 5, 9])
def test_an_update_is_the_literal_one(epoch: int, number: int) -> None:
    assert_follows_reference("nuat", make("nuat", epoch=epoch, number=number), make_batch())


def test_the_attacks_nuclear_norm_changes_where_it_goes() -> None:
    images = [
        make("nuat", epoch=9, number=1, options={"nuclear-weight": weight})
        .perturb(tiny(), make_batch(), keep_graph=False)
        .images
        for weight in (0, 100)
    ]
    assert not torch.equal(*images)


def test_lambda_rises_to_90_percent_of_the_run_and_every_other_attack_leaves_it_out() -> None:
    # 10 epochs: 4.5 after the ninth; with 4.5 / 9 that is half a unit per epoch.
    rise = [make("nuat", epoch=epoch, number=1).weight for epoch in range(10)]
    assert rise == pytest.approx([0.5 * epoch for epoch in range(10)])
    assert make("nuat", options={"ramp": 0}).weight == 4.5
    assert make("nuat", epoch=4, number=7).attack_weight == pytest.approx(2.0)
    even = make("nuat", epoch=4, number=6)
    assert even.attack_weight == 0
    assert even.weight == pytest.approx(2.0)


def test_the_norm_is_the_sum_of_singular_values_over_the_batch_also_in_half_precision() -> None:
    change = torch.tensor([[3.0, 0.0], [0.0, -4.0], [0.0, 0.0]])
    assert nuclear_norm(change).item() == pytest.approx(7 / 3)
    assert nuclear_norm(change.bfloat16()).item() == pytest.approx(7 / 3)
    assert nuclear_norm(change[:, :1] * 0).item() == 0


def test_the_norm_is_measured_without_its_weight() -> None:
    batch = make_batch()
    (light, loss), (heavy, heavier) = (
        step_of(make("nuat", epoch=9, options={"nuclear-weight": weight}), tiny(), batch) for weight in (0.5, 2.5)
    )
    close(light.measured["nuclear"], heavy.measured["nuclear"])
    close(heavier - loss, 2 * light.measured["nuclear"])
    assert light.measured["nuclear"] > 1e-3
    assert not light.measured["nuclear"].requires_grad


def test_two_processes_attack_as_one_does_without_the_norm() -> None:
    batch, method = make_batch(), make("nuat", epoch=5, number=0)
    divided = []
    for part in parts(batch, 4):
        model = tiny()
        model.bn.momentum = 0.0  # the statistics of the parts differ; the attack shall not see it
        method.begin_step(5, 0)
        divided.append(method.perturb(model, part, keep_graph=False).images)
    model = tiny()
    model.bn.momentum = 0.0
    method.begin_step(5, 0)
    close(torch.cat(divided), method.perturb(model, batch, keep_graph=False).images)


def test_the_attack_leaves_the_modes_and_the_graph_where_asked_for() -> None:
    model, literal_model, batch, method = tiny(), tiny(), make_batch(), make("nuat")
    literal = REFERENCES["nuat"](literal_model, batch, method)
    model.relu.eval()
    perturbed = method.perturb(model, batch, keep_graph=True)
    assert [name for name, module in model.named_modules() if not module.training] == ["relu"]
    assert perturbed.start is not None
    assert literal.start_logits is not None
    model(batch.images)  # changes the running statistics, which the kept graph must not see
    perturbed.start.logits.square().sum().backward()
    (expected,) = torch.autograd.grad(literal.start_logits.square().sum(), literal_model.conv.weight)
    close(model.conv.weight.grad, expected)


def test_a_ramp_longer_than_the_run_is_refused() -> None:
    with pytest.raises(InputError, match="method nuat: option ramp must be at least 0 and at most 1, not 2"):
        make("nuat", options={"ramp": 2})
