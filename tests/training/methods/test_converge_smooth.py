"""When ConvergeSmooth's term is used, with which sign, and what of it outlasts an update."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from coprobe.core.processes import Processes
from coprobe.data import Batch
from coprobe.errors import InputError
from coprobe.training import make_method
from coprobe.training.methods.converge_smooth import ConvergeSmooth
from tests.training.methods.small import made, perturbed
from tests.training.references import REFERENCES
from tests.training.references.common import (
    EPSILON,
    At,
    Tiny,
    begin,
    context,
    make,
    make_batch,
    soft_cross_entropy,
    tiny,
)
from tests.training.references.converge_smooth import factor

NAMES = ("cs-mep", "cs-rs")


def smooth(name: str, **how: object) -> ConvergeSmooth:
    method = make(name, **how)  # type: ignore[arg-type]
    assert isinstance(method, ConvergeSmooth)
    return method


def descend(model: Tiny, loss: Tensor) -> None:
    model.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.sub_(0.2 * parameter.grad)


def batches(epoch: int) -> list[Batch]:
    """All eight images, with different ones in each epoch: six, and two in a smaller last batch."""
    six, others = make_batch(4 + epoch), make_batch(50 + epoch)
    left = torch.tensor([index for index in range(8) if index not in six.indices.tolist()])
    assert six.offsets is not None and others.mirrored is not None
    two = Batch(others.images[:2], others.labels[:2], left, left, 0, six.offsets[:2], others.mirrored[:2])
    return [six, two]


@pytest.mark.parametrize("name", NAMES)
def test_the_term_is_used_strictly_inside_each_phase(name: str) -> None:
    method = smooth(name)
    method.prepare(replace(context(110), phases=((0, 100), (100, 105), (105, 110))))
    assert [epoch for epoch in range(110) if method.active(epoch)] == [*range(2, 99), 102, 103, 107, 108]


@pytest.mark.parametrize("initialize", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_several_epochs_equal_the_reference(name: str, initialize: int) -> None:
    method, model = smooth(name, options={"ratio": 3, "initialize": initialize}), tiny()
    sums, factors = [], []
    for epoch in range(5):
        begin(method, epoch) if epoch else None
        sums.append(0.0)
        for number, batch in enumerate(batches(epoch)):
            at, slow = At(epoch, number), copy.deepcopy(model)
            expected = REFERENCES[name](slow, batch, method, at).loss
            update, _, _, loss = made(method, model, batch, at)
            torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)
            factors.append((epoch, factor(method, at, update.measured["clean_loss"].item())))
            assert update.measured["smooth_active"].item() == abs(factors[-1][1])
            sums[-1] += update.measured["clean_loss"].item() * len(batch.labels)
            descend(model, loss)
            descend(slow, expected)
            for key, value in slow.state_dict().items():
                torch.testing.assert_close(model.state_dict()[key], value, rtol=0, atol=1e-10)
        if epoch:
            means = torch.tensor([sums[-2] / 8, sums[-3] / 8 if epoch > 1 else 0.0], dtype=torch.float64)
            torch.testing.assert_close(method.kept["clean_means"], means, rtol=0, atol=1e-12)
    assert all(value == 0 for epoch, value in factors if epoch < 2)
    assert {value for epoch, value in factors if epoch >= 2} >= {1.0, -1.0}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("ratio", "change", "jump", "sign"),
    [
        (1.0, 0.0, 0.031, 1),
        (1.0, 0.0, 0.029, 0),
        (1.0, 0.0, -0.029, 0),
        (1.0, 0.0, -0.031, -1),
        (1.0, 0.5, 0.031, 1),
        (3.0, 0.0, 0.011, 1),
        (3.0, 0.0, 0.009, 0),
        (3.0, 0.02, 0.019, 0),
        (3.0, 0.02, -0.021, -1),
        (3.0, 0.5, 0.031, 1),
        (3.0, 0.5, 0.029, 0),
        (3.0, -0.02, 0.011, 1),  # β with its sign, not its size
    ],
)
def test_the_threshold(name: str, ratio: float, change: float, jump: float, sign: int) -> None:
    method = smooth(name, epoch=3, options={"ratio": ratio, "weight": 2.0})
    batch, model = make_batch(), tiny()
    clean = soft_cross_entropy(copy.deepcopy(model)(batch.images), batch.labels, 0.6)
    last = clean.detach() - jump
    method.kept["clean_means"] = torch.stack([last, last - change])
    update, _, final, loss = made(method, model, batch, At(3))
    alone = soft_cross_entropy(final.logits, batch.labels, 0.6)
    torch.testing.assert_close(loss, alone + 2.0 * sign * clean, rtol=0, atol=1e-10)
    torch.testing.assert_close(update.measured["clean_loss"], clean.detach(), rtol=0, atol=1e-10)
    assert update.measured["smooth_active"].item() == abs(sign)


@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_run_goes_on_with_the_same_means(name: str, after: int) -> None:
    """After the first update of epoch 3, and at its end."""
    method, model = smooth(name, epoch=3), tiny()
    for batch in batches(3)[:after]:
        descend(model, made(method, model, batch, At(3)).objective)
    again = make_method(name, {}, epsilon=EPSILON)
    again.prepare(context())
    again.load(copy.deepcopy(method.state()))
    other = copy.deepcopy(model)
    for each, its in ((method, model), (again, other)):
        for number, batch in list(enumerate(batches(3)))[after:]:
            descend(its, made(each, its, batch, At(3, number)).objective)
        begin(each, 4)
        descend(its, made(each, its, batches(4)[0], At(4)).objective)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    for key in ("clean_means", "clean_totals"):
        assert torch.equal(method.kept[key], again.kept[key])  # type: ignore[arg-type]
        assert method.kept[key][0] > 0  # type: ignore[index]


class Twin(Processes):
    """Two processes, of which the other has the same numbers."""

    def sum(self, tensor: Tensor) -> Tensor:
        return 2 * tensor


def test_means_are_over_all_processes() -> None:
    method, model, whole = smooth("cs-rs"), tiny(), make_batch()
    method.prepare(replace(context(), processes=Twin()))
    half = Batch(whole.images[:3], whole.labels[:3], whole.indices[:3], whole.whole)
    clean = soft_cross_entropy(copy.deepcopy(model)(half.images), half.labels, 0.6).detach()
    update = made(method, model, half).update
    torch.testing.assert_close(update.measured["clean_loss"], clean, rtol=0, atol=1e-10)
    six = torch.tensor(6.0, dtype=torch.float64)
    torch.testing.assert_close(method.kept["clean_totals"], torch.stack([6 * clean, six]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_at_the_start_needs_no_pass(name: str) -> None:
    for initialize, passes in ((0, 3), (1, 2)):
        method, model, seen = smooth(name, options={"initialize": initialize}), tiny(), []
        model.register_forward_hook(lambda *call, seen=seen: seen.append(call))
        made(method, model, make_batch())
        assert len(seen) == passes


def test_the_step_of_rs_leaves_the_ball_but_not_the_range() -> None:
    method, batch = smooth("cs-rs"), make_batch()
    images = perturbed(method, tiny(), batch)
    size = (images - batch.images).abs()
    assert not method.bounded
    assert 1.5 * EPSILON < size.max() <= 2 * EPSILON
    assert images.min() == 0
    assert images.max() == 1


def test_the_logit_term_is_off_by_default() -> None:
    assert [smooth(name).default_logit_weight for name in NAMES] == [0.0, 0.0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("option", "value"), [("gamma", -0.1), ("gamma", float("nan")), ("ratio", 0.0)])
def test_a_threshold_without_sense_is_refused(name: str, option: str, value: float) -> None:
    with pytest.raises(InputError, match=f"method .*: option {option} (must be|takes)"):
        make_method(name, {option: value}, epsilon=EPSILON).prepare(context())
