"""Methods of a few lines."""

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
    single_step,
    update,
)


def clean(model: Tiny, batch: Batch, method: Method, at: At) -> Literal:
    return update(model, batch.images, batch)


def noise(model: Tiny, batch: Batch, method: Method, at: At) -> Literal:
    return update(model, batch.images + EPSILON * draw_uniform(draws(at), batch), batch)


def free(model: Tiny, batch: Batch, method: Method, at: At) -> Literal:
    """One update; tests/training/methods/test_free.py follows δ from one to the next."""
    return update(model, batch.images + method.kept["delta"][: len(batch.images)], batch)


def fgsm(model: Tiny, batch: Batch, method: Method, at: At) -> Literal:
    return single_step(model, batch, torch.zeros_like(batch.images), EPSILON)


def fgsm_rs(model: Tiny, batch: Batch, method: Method, at: At) -> Literal:
    draw = draw_uniform(draws(at), batch)
    delta0 = clip(batch.images + draw * EPSILON, 0, 1) - batch.images
    return single_step(model, batch, delta0, 1.25 * EPSILON)


def n_fgsm(model: Tiny, batch: Batch, method: Method, at: At) -> Literal:
    noisy = clip(batch.images + 2 * EPSILON * draw_uniform(draws(at), batch), 0, 1)
    gradient, features, logits = attack_gradient(model, noisy, batch.labels)
    return update(model, clip(noisy + EPSILON * gradient.sign(), 0, 1), batch, 1.0, features, logits)


def fgsm_mep(model: Tiny, batch: Batch, method: Method, at: At) -> Literal:
    delta0 = method.memory("prior").gather()[batch.indices].clone()
    return single_step(model, batch, delta0, EPSILON, 0.6)


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


REFERENCES = {
    "clean": clean,
    "noise": noise,
    "free": free,
    "fgsm": fgsm,
    "fgsm-rs": fgsm_rs,
    "n-fgsm": n_fgsm,
    "fgsm-mep": fgsm_mep,
    "pgd-at": pgd_at,
}
