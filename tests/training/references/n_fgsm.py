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


def n_fgsm(model: Tiny, batch: Batch, method: Method, at: At) -> Literal:
    noisy = clip(batch.images + 2 * EPSILON * draw_uniform(draws(at), batch), 0, 1)
    gradient, features, logits = attack_gradient(model, noisy, batch.labels)
    return update(model, clip(noisy + EPSILON * gradient.sign(), 0, 1), batch, 1.0, features, logits)


REFERENCES = {"n-fgsm": n_fgsm}
