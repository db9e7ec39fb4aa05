from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from coprobe.training.modes import evaluating


def test_every_module_gets_its_own_mode_back() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm2d(2)))
    model[1].eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(ZeroDivisionError), evaluating(model, keep_graph=False):
        assert not any(module.training for module in model.modules())
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == before
    assert len(set(before)) == 2


@pytest.mark.parametrize("keep_graph", [False, True])
def test_the_pass_is_that_of_evaluation_mode_and_its_graph_outlasts_a_change_of_statistics(keep_graph: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    images = torch.rand(4, 1, 5, 5)
    expected = copy.deepcopy(model).eval()(images)
    with evaluating(model, keep_graph=keep_graph) as call:
        outputs = call(images)
    torch.testing.assert_close(outputs, expected)
    gradients = []
    for change in (False, True):
        if change:
            model(10 * images)
        gradients.append(torch.autograd.grad(outputs.square().sum(), model[0].weight, retain_graph=True)[0])
    assert torch.equal(*gradients) == keep_graph
