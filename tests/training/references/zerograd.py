from __future__ import annotations

import math

import torch
from torch import Tensor

from coprobe.data import Batch
from coprobe.training.methods import Method
from tests.training.references.common import (
    EPSILON,
    At,
    Literal,
    Tiny,
    attack_gradient,
    clip,
    draw_uniform,
    draws,
    update,
)


def quantile(values: Tensor, q: float) -> float:
    """Between the two nearest of the sorted values, in proportion."""
    ordered = sorted(values.flatten().tolist())
    place = q * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low + (place - math.floor(place)) * (high - low)


def zerograd(model: Tiny, batch: Batch, method: Method, at: At) -> Literal:
    draw = draw_uniform(draws(at), batch)
    delta0 = clip(batch.images + draw * EPSILON, 0, 1) - batch.images
    gradient, features, logits = attack_gradient(model, batch.images + delta0, batch.labels)
    for image in gradient:
        threshold = quantile(image.abs(), 0.35)
        entries = image.view(-1)
        for i in range(len(entries)):
            if abs(entries[i].item()) < threshold:
                entries[i] = 0.0
    delta = clip(delta0 + 2 * EPSILON * gradient.sign(), -EPSILON, EPSILON)
    return update(model, clip(batch.images + delta, 0, 1), batch, 1.0, features, logits)


def multigrad(model: Tiny, batch: Batch, method: Method, at: At) -> Literal:
    generator = draws(at)
    signs = []
    for _ in range(3):
        delta0 = clip(batch.images + draw_uniform(generator, batch) * EPSILON, 0, 1) - batch.images
        gradient, features, logits = attack_gradient(model, batch.images + delta0, batch.labels)
        signs.append(gradient.sign().flatten().tolist())
    same = [a if a == b == c else 0.0 for a, b, c in zip(*signs, strict=True)]
    sign = torch.tensor(same, dtype=torch.float64).view_as(batch.images)
    delta = clip(2 * EPSILON * sign, -EPSILON, EPSILON)
    return update(model, clip(batch.images + delta, 0, 1), batch, 1.0, features, logits)


REFERENCES = {"zerograd": zerograd, "multigrad": multigrad}
