"""GradAlign's weight and its penalty."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from coprobe.data import Batch
from coprobe.errors import InputError
from coprobe.training import make_method
from coprobe.training.methods.gradalign import misalignment
from tests.training.methods.small import made, perturbed
from tests.training.references.common import CLASSES, EPSILON, make, make_batch, tiny


@pytest.mark.parametrize(("n", "weight"), [(8, 0.2), (10, 0.356), (12, 0.632), (14, 1.125), (16, 2.0)])
def test_the_weight_rises_with_epsilon(n: int, weight: float) -> None:
    method = make_method("gradalign", {}, epsilon=n / 255)
    assert method.penalty_weight == pytest.approx(weight, abs=5e-4)  # type: ignore[attr-defined]


def test_a_weight_that_is_given_takes_the_place_of_the_formula() -> None:
    batch, terms = make_batch(), []
    for weight in ("0", "0.5", "1"):
        method, model = make("gradalign", options={"weight": weight}), tiny()
        update, _, final, objective = made(method, model, batch)
        terms.append(objective - method.loss(final.logits, batch.labels))
        penalty = 1 - update.measured["alignment"]
        torch.testing.assert_close(terms[-1].detach(), float(weight) * penalty)
        assert penalty > 1e-3


def test_the_step_reaches_the_border_of_the_ball() -> None:
    batch = make_batch()
    images = perturbed(make("gradalign"), tiny(), batch)
    inside = (images > 0) & (images < 1)
    torch.testing.assert_close((images - batch.images).abs()[inside], torch.full_like(images, EPSILON)[inside])


def test_a_linear_model_of_two_classes_has_no_penalty() -> None:
    """Its gradient changes in size only."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 4 * 5, 2).double())
    batch = make_batch()
    batch = Batch(batch.images, batch.labels % 2, batch.indices, batch.whole)
    update, _, final, objective = made(method := make("gradalign"), model, batch)
    assert (objective - method.loss(final.logits, batch.labels)).abs() < 1e-12
    assert update.measured["alignment"].item() == pytest.approx(1, abs=1e-12)


class Bright(nn.Module):
    """Blind to images that are darker than 0.3 everywhere: there, the gradient is exactly 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(2 * 4 * 5, CLASSES).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear((x.flatten(1) - 0.3).relu().square())


def test_images_without_a_gradient_are_left_out() -> None:
    batch, model, method = make_batch(), Bright(), make("gradalign")
    batch.images[2], batch.images[4] = 0.0, 0.1
    _, inputs, final, objective = made(method, model, batch)
    assert inputs.gradient is not None
    assert (inputs.gradient.flatten(1).norm(dim=1) > 0).tolist() == [True, True, False, True, False, True]
    penalty = objective - method.loss(final.logits, batch.labels)
    gradients = torch.autograd.grad(penalty, list(model.parameters()))
    assert all(gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in gradients)


def test_the_mean_is_over_the_images_that_count() -> None:
    first = torch.tensor([[1.0, 0.0], [0.0, 0.0], [2.0, 0.0], [3.0, 4.0]])
    second = torch.tensor([[0.0, 5.0], [1.0, 0.0], [7.0, 0.0], [0.0, 0.0]], requires_grad=True)
    value = misalignment(first, second)
    assert value.item() == pytest.approx((1 + 0) / 2)
    (gradient,) = torch.autograd.grad(value, second)
    # d(1 − cos)/d second of (1, 0) and (0, 5) is −(1, 0)/5, halved by the mean; others are parallel or left out
    torch.testing.assert_close(gradient, torch.tensor([[-0.1, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))
    torch.testing.assert_close(misalignment(1e-12 * first, 1e-12 * second), value)


def test_without_any_gradient_there_is_no_penalty() -> None:
    second = torch.zeros(3, 2, requires_grad=True)
    value = misalignment(torch.ones(3, 2), second)
    assert value.item() == 0.0
    assert torch.autograd.grad(value, second)[0].tolist() == [[0.0, 0.0]] * 3


@pytest.mark.parametrize("weight", ["-1", "nan", "inf"])
def test_an_impossible_weight_is_refused(weight: str) -> None:
    with pytest.raises(InputError, match=r"method gradalign: option weight (must be at least 0|takes)"):
        make_method("gradalign", {"weight": weight}, epsilon=EPSILON)
