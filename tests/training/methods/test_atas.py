"""ATAS: the perturbation that follows crop and flip, the step sizes, and the pass in evaluation mode."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from coprobe.data import Batch, draw_augmentation
from coprobe.errors import InputError
from coprobe.training import make_method
from coprobe.training.methods.atas import ATAS
from tests.training.methods.small import perturbed
from tests.training.references.atas import atas as reference
from tests.training.references.atas import crop_and_flip, step_sizes
from tests.training.references.common import EPSILON, IMAGES, PADDING, SHAPE, At, begin, context, make, make_batch, tiny

C, H, W = SHAPE


def method_at(epoch: int = 0, **how: object) -> ATAS:
    method = make("atas", epoch=epoch, **how)  # type: ignore[arg-type]
    assert isinstance(method, ATAS)
    return method


def stored(method: ATAS) -> Tensor:
    return method.memory("perturbation").gather().clone()


def without_augmentation(batch: Batch) -> Batch:
    return replace(batch, offsets=None, mirrored=None)


@pytest.mark.parametrize("augmented", [True, False])
def test_the_perturbation_goes_back_to_where_the_crop_was(augmented: bool) -> None:
    method, batch = make_method("atas", {}, epsilon=EPSILON), make_batch()
    method.prepare(context() if augmented else replace(context(), padding=0))
    begin(method, 0)
    batch = batch if augmented else without_augmentation(batch)
    border = PADDING if augmented else 0
    before = stored(method)
    assert before.shape == (IMAGES, H + 2 * border, W + 2 * border, C)
    assert 0.9 * EPSILON < before.abs().max() <= EPSILON
    delta = perturbed(method, tiny(), batch) - batch.images

    expected = before.clone()
    for image, index in enumerate(batch.indices.tolist()):
        for row in range(H):
            for column in range(W):
                top, left = batch.offsets[image].tolist() if augmented else (0, 0)  # type: ignore[index]
                mirrored = augmented and batch.mirrored[image]  # type: ignore[index]
                from_ = left + (W - 1 - column if mirrored else column)
                expected[index, top + row, from_] = delta[image, :, row, column]
    assert torch.equal(stored(method), expected)
    assert not torch.equal(expected, before)


def test_the_same_pixels_of_the_image_meet_the_same_perturbation_again() -> None:
    """A perturbation that is 0.1 per column of the padded image shows, in each crop, which columns it is from."""
    method, model = method_at(), tiny()
    ramp = torch.arange(W + 2 * PADDING).double().expand(IMAGES, H + 2 * PADDING, -1)[..., None].expand(-1, -1, -1, C)
    method.kept["perturbation"] = method.remember(0.1 * ramp)
    offsets, mirrored = draw_augmentation(6, PADDING, True, torch.Generator().manual_seed(1))
    batch = replace(make_batch(), images=torch.zeros(6, *SHAPE).double(), offsets=offsets, mirrored=mirrored)
    seen: list[Tensor] = []
    model.conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    perturbed(method, model, batch)
    for image, (_, left) in enumerate(offsets.tolist()):
        columns = [left + column for column in range(W)]
        columns = columns[::-1] if mirrored[image] else columns
        expected = 0.1 * torch.tensor(columns).double().expand(SHAPE)
        torch.testing.assert_close(seen[0][image], expected.clamp(max=1))
    assert 0 < int(mirrored.sum()) < 6
    assert len(offsets[:, 1].unique()) > 1


def test_two_adaptive_steps_equal_the_reference() -> None:
    method, model, batch = method_at(5), tiny(), make_batch()
    with torch.no_grad():
        model.linear.weight *= torch.linspace(0.05, 2, model.linear.weight.shape[1])
    sizes: list[float] = []
    for number in range(2):
        at = At(5, number)
        expected = reference(copy.deepcopy(model), batch, method, at)
        _, gradient = start_gradient(slow_start(method, batch), model, batch)
        now, v = step_sizes(method, gradient, batch)
        sizes += now
        images = perturbed(method, model, batch, at)
        torch.testing.assert_close(images, expected.images, rtol=0, atol=1e-10)
        kept = method.memory("gradient").gather()[batch.indices] / 6
        torch.testing.assert_close(kept.square(), torch.tensor(v, dtype=torch.float64), rtol=1e-10, atol=0)
        model(images)
    assert len({size for size in sizes if 4.01 / 255 < size < 13.99 / 255}) > 6  # not all of them clipped


def slow_start(method: ATAS, batch: Batch) -> Tensor:
    return (batch.images + crop_and_flip(stored(method), batch)).clamp(0, 1)


def start_gradient(start: Tensor, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    model = copy.deepcopy(model).eval()
    start = start.clone().requires_grad_()
    logits = model(start)
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, batch.labels), start)
    return logits, gradient


def test_the_step_is_epsilon_during_the_warm_up() -> None:
    method = method_at()
    for epoch in range(8):
        perturbed(method, tiny(), make_batch(), At(epoch))
        assert (method.memory("gradient").gather().max() > 0) == (epoch >= 5)


@pytest.mark.parametrize(
    ("epochs", "every", "drawn"), [(30, 10, [1, 10, 20]), (31, 10, [1, 10, 20, 30]), (6, 2, [1, 2, 4]), (3, 1, [1, 2])]
)
def test_the_perturbations_are_drawn_anew_but_not_before_the_last_epoch(
    epochs: int, every: int, drawn: list[int]
) -> None:
    method = make_method("atas", {"reset-every": every}, epsilon=EPSILON)
    method.prepare(context(epochs))
    seen: list[Tensor] = []
    when = []
    for epoch in range(epochs):
        begin(method, epoch)
        rows = stored(method)  # type: ignore[arg-type]
        if not seen or not torch.equal(rows, seen[-1]):
            when.append(epoch + 1)
            seen.append(rows)
        method.memory("gradient").write(make_batch(), torch.ones(6))
    assert when == drawn
    assert method.memory("gradient").gather().sum() == 6


class Faint(nn.Module):
    """Logits that hardly depend on the images: gradients of about 1e-6 per image of a batch."""

    def forward(self, x: Tensor) -> Tensor:
        s = 1e-5 * (1 + torch.arange(len(x))) * x.flatten(1).sum(1)
        return torch.stack([s, -s, s, -s, s], 1)


def test_faint_gradients_survive_half_precision() -> None:
    method, batch = make_method("atas", {}, epsilon=EPSILON), make_batch()
    method.prepare(replace(context(), memory_dtype=torch.float16))
    begin(method, 0)
    _, gradient = start_gradient(batch.images, Faint(), batch)
    root = (0.5 * gradient.square().sum((1, 2, 3))).sqrt()
    assert root.max() ** 2 < 6e-8  # v itself would be 0
    perturbed(method, Faint(), batch, At(5))
    kept = method.memory("gradient").gather()[batch.indices].double() / 6
    torch.testing.assert_close(kept, root, rtol=2e-3, atol=0)


@pytest.mark.parametrize(("option", "value"), [("c", 0.0), ("c", float("nan")), ("reset-every", 0)])
def test_options_without_sense_are_refused(option: str, value: float) -> None:
    with pytest.raises(InputError, match=f"method atas: option {option.replace('-', '_')} (must be|takes)"):
        make_method("atas", {option: value}, epsilon=EPSILON)
