from __future__ import annotations

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


def pgd_at(model: Tiny, batch: Batch, method: Method, at: At) -> Literal:
    x = batch.images
    delta = clip(x + draw_uniform(draws(at), batch) * EPSILON, 0, 1) - x
    passes = []
    for _ in range(7):
        gradient, features, logits = attack_gradient(model, x + delta, batch.labels)
        passes.append((features, logits))
        delta = clip(delta + 2 / 255 * gradient.sign(), -EPSILON, EPSILON)
        delta = clip(delta, -x, 1 - x)
    start_features, start_logits = passes[0]
    return update(model, x + delta, batch, 1.0, start_features, start_logits)


REFERENCES = {"pgd-at": pgd_at}
