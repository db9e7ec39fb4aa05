"""The passes of an update, and the gradients with respect to their images."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from coprobe.nodes import record
from coprobe.training.update import UpdateState
from tests.training.methods.small import close, parts
from tests.training.references.common import Tiny, make_batch, tiny


def state(model: nn.Module, *, keep_graph: bool = False) -> UpdateState:
    return UpdateState(model, make_batch(), 0, 0, torch.Generator(), cross_entropy, keep_graph)


def test_a_pass_has_the_activations_that_it_saw_itself() -> None:
    model = tiny()
    with record(model, ["relu"]) as recorded:
        update = replace(state(model), recorded=recorded)
        first = update.forward(update.batch.images)
        second = update.forward(1 - update.batch.images)
    for made in (first, second):
        close(made.activations["relu"], tiny().features(made.images))
    assert first.images.is_leaf and not update.batch.images.requires_grad


def test_every_module_gets_its_own_mode_back() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm2d(2)))
    model[1].eval()
    before, seen = [module.training for module in model.modules()], []

    def fail(module: nn.Module, inputs: object) -> None:
        seen.extend(each.training for each in model.modules())
        raise ZeroDivisionError

    model[1].register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        state(model).forward(make_batch().images, training=False)
    assert not any(seen)
    assert [module.training for module in model.modules()] == before
    assert len(set(before)) == 2


@pytest.mark.parametrize("keep_graph", [False, True])
def test_a_pass_in_evaluation_mode_whose_graph_is_kept_outlasts_a_change_of_statistics(keep_graph: bool) -> None:
    model = tiny()
    update = state(model, keep_graph=keep_graph)
    made = update.forward(update.batch.images, training=False)
    close(made.logits, copy.deepcopy(model).eval()(update.batch.images))
    gradients = []
    for change in (False, True):
        if change:
            model(10 * update.batch.images)
        gradients.append(torch.autograd.grad(made.logits.square().sum(), model.conv.weight, retain_graph=True)[0])
    assert torch.equal(*gradients) == keep_graph


def gradient_of(update: UpdateState, model: Tiny) -> Tensor:
    start = update.forward(update.batch.images, training=False)
    return update.input_gradient(start, update.loss(start.logits, update.batch.labels))


def test_the_gradient_of_a_part_is_that_of_the_mean_over_the_whole_batch() -> None:
    model, update = tiny(), state(tiny())
    whole = gradient_of(update, model)
    divided = [gradient_of(replace(update, batch=part), model) for part in parts(update.batch, 4)]
    close(torch.cat(divided), whole)
    x = update.batch.images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(cross_entropy(tiny().eval()(x), update.batch.labels), x)
    close(whole, expected)


@pytest.mark.parametrize(("keep_graph", "compared"), [(False, True), (True, False), (True, True)])
def test_only_the_graph_of_the_pass_that_is_compared_with_is_kept(keep_graph: bool, compared: bool) -> None:
    update = state(tiny(), keep_graph=keep_graph)
    start = update.forward(update.batch.images)
    update.input_gradient(start, start.logits.square().sum(), compared=compared)
    if keep_graph and compared:
        start.logits.sum().backward()
    else:
        with pytest.raises(RuntimeError, match="second time"):
            start.logits.sum().backward()


def test_a_gradient_that_is_differentiated() -> None:
    """Of s² / 2 with s the sum over an image's n entries: the gradient is s in each, that of its squared norm 2 n s."""
    update = state(nn.Flatten())
    start = update.forward(update.batch.images)
    sums = start.logits.sum(1)
    gradient = update.input_gradient(start, sums.square().sum() / 2, create_graph=True)
    close(gradient.flatten(1), sums[:, None].expand(-1, 40))
    (twice,) = torch.autograd.grad(gradient.square().sum(), start.images)
    close(twice.flatten(1), (2 * 40 * sums[:, None]).expand(-1, 40))
