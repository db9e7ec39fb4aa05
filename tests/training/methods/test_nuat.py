from __future__ import annotations

import pytest
import torch

from coprobe.errors import InputError
from coprobe.training.methods.nuat import NuAT, nuclear_norm
from tests.training.methods.small import close, made, parts, perturbed
from tests.training.references.common import At, Tiny, make, make_batch, tiny


def test_the_attacks_nuclear_norm_changes_where_it_goes_in_every_other_update() -> None:
    without, with_it = (make("nuat", options={"nuclear-weight": weight}) for weight in (0, 100))
    for number in range(4):
        images = [perturbed(method, tiny(), make_batch(), At(9, number)) for method in (without, with_it)]
        assert torch.equal(*images) == (number % 2 == 0)


def test_lambda_rises_to_90_percent_of_the_run() -> None:
    # 10 epochs: 4.5 after the ninth; with 4.5 / 9 that is half a unit per epoch.
    method, ready = make("nuat"), make("nuat", options={"ramp": 0})
    assert isinstance(method, NuAT) and isinstance(ready, NuAT)
    assert [method.weight(epoch) for epoch in range(10)] == pytest.approx([0.5 * epoch for epoch in range(10)])
    assert ready.weight(0) == 4.5


def test_the_norm_is_the_sum_of_singular_values_over_the_batch_also_in_half_precision() -> None:
    change = torch.tensor([[3.0, 0.0], [0.0, -4.0], [0.0, 0.0]])
    assert nuclear_norm(change).item() == pytest.approx(7 / 3)
    assert nuclear_norm(change.bfloat16()).item() == pytest.approx(7 / 3)
    assert nuclear_norm(change[:, :1] * 0).item() == 0


def test_the_norm_is_measured_without_its_weight() -> None:
    light, heavy = (
        made(make("nuat", options={"nuclear-weight": weight}), tiny(), make_batch(), At(9)) for weight in (0.5, 2.5)
    )
    norm = light.update.measured["nuclear"]
    close(norm, heavy.update.measured["nuclear"])
    close(heavy.objective - light.objective, 2 * norm)
    assert norm > 1e-3
    assert not norm.requires_grad


def test_two_processes_attack_as_one_does_without_the_norm() -> None:
    batch, method = make_batch(), make("nuat")
    divided = [perturbed(method, forgetful(), part, At(5)) for part in parts(batch, 4)]
    close(torch.cat(divided), perturbed(method, forgetful(), batch, At(5)))


def forgetful() -> Tiny:
    """The batch statistics of the parts differ; the running ones, which the attack uses, must not."""
    model = tiny()
    model.bn.momentum = 0.0
    return model


def test_a_ramp_longer_than_the_run_is_refused() -> None:
    with pytest.raises(InputError, match="method nuat: option ramp must be at least 0 and at most 1, not 2"):
        make("nuat", options={"ramp": 2})
