from __future__ import annotations

import torch

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
    soft_cross_entropy,
    update,
)


def gradalign(model: Tiny, batch: Batch, method: Method, at: At) -> Literal:
    draw = draw_uniform(draws(at), batch)
    at_x, start_features, start_logits = attack_gradient(model, batch.images, batch.labels)
    delta = clip(1.25 * EPSILON * at_x.sign(), -EPSILON, EPSILON)
    literal = update(model, clip(batch.images + delta, 0, 1), batch, 1.0, start_features, start_logits)

    near = (batch.images + draw * EPSILON).requires_grad_()
    loss = soft_cross_entropy(model(near), batch.labels)
    (at_near,) = torch.autograd.grad(loss, near, create_graph=True)
    cosines = []
    for a, b in zip(at_x, at_near, strict=True):
        a_square, b_square = (a * a).sum(), (b * b).sum()
        if a_square > 0 and b_square > 0:
            cosines.append((a * b).sum() / (a_square.sqrt() * b_square.sqrt()))
    weight = 0.02 * 10 ** (16 / 8)
    literal.loss = literal.loss + weight * (1 - torch.stack(cosines).mean())
    return literal


REFERENCES = {"gradalign": gradalign}
