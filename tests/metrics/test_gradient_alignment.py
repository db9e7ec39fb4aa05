"""Gradient alignment on networks whose gradients are known, and against a literal loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from coprobe.attacks import AdversarialBatch
from coprobe.core.randomness import ImageRandomness
from coprobe.errors import InputError, RunError
from coprobe.metrics.gradient_alignment import GradientAlignment

EPSILON, SEED = 0.5, 3


def batch(count: int = 7, classes: int = 4) -> AdversarialBatch:
    x = torch.rand(count, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    return AdversarialBatch(5, torch.arange(count) % classes, {"clean": x})


def network(classes: int, *, hidden: bool) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(60, 16), nn.Tanh(), nn.Linear(16, classes)] if hidden else [nn.Linear(60, classes)]
    layers[0].weight.data *= 5  # so that the gradient turns
    return nn.Sequential(nn.Flatten(), *layers)


def test_a_linear_network_of_two_classes_has_one_direction() -> None:
    (row,) = GradientAlignment(epsilon=EPSILON).measure(network(2, hidden=False), [batch(classes=2)]).to_dict("records")
    assert row["alignment"] == pytest.approx(1, abs=1e-6) and (row["n"], row["counted"]) == (7, 7)
    assert row["high"] - row["low"] < 1e-3


def test_it_is_the_mean_cosine_of_a_literal_loop() -> None:
    model, images = network(4, hidden=True).train(), batch()
    cosines = []
    for place, (image, label) in enumerate(zip(images.images["clean"], images.labels, strict=True)):
        draw = ImageRandomness(SEED, "gradient-alignment", torch.tensor([5 + place])).uniform(image.shape)[0]
        gradients = []
        for point in (image, image + EPSILON * (2 * draw - 1)):
            x = point[None].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(cross_entropy(model(x), label[None]), x)
            gradients.append(gradient.flatten().double())
        cosines.append(float(gradients[0] @ gradients[1] / (gradients[0].norm() * gradients[1].norm())))
    metric = GradientAlignment(epsilon=EPSILON, seed=SEED)
    parts = [images.part(0, 3), images.part(3, 7)]
    (row,) = metric.measure(model, parts).to_dict("records")
    mean = sum(cosines) / 7
    assert row["alignment"] == pytest.approx(mean, abs=1e-6) and mean < 0.99
    spread = math.sqrt(sum((cosine - mean) ** 2 for cosine in cosines) / 7 / 7)
    assert (row["low"], row["high"]) == pytest.approx((mean - 1.96 * spread, mean + 1.96 * spread), abs=1e-4)
    assert model.training and all(p.grad is None for p in model.parameters())
    (other,) = GradientAlignment(epsilon=EPSILON, seed=4).measure(model, parts).to_dict("records")
    assert other["alignment"] != row["alignment"]


def test_images_without_a_gradient_are_counted_apart() -> None:
    model = network(4, hidden=False)
    model[1].weight.data.zero_()
    (row,) = GradientAlignment(epsilon=EPSILON).measure(model, [batch()]).to_dict("records")
    assert (row["n"], row["counted"]) == (7, 0) and math.isnan(row["alignment"])


def test_what_cannot_be_measured() -> None:
    with pytest.raises(InputError, match="no images to take gradients of"):
        GradientAlignment().measure(network(4, hidden=False), [])
    model = network(4, hidden=False)
    model[1].weight.data[0, 0] = torch.nan
    with pytest.raises(RunError, match="gradients are not finite"):
        GradientAlignment(epsilon=EPSILON).measure(model, [batch()])
