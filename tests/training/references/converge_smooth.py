from __future__ import annotations

from torch import Tensor

from coprobe.data import Batch
from coprobe.training.methods import Method
from coprobe.training.methods.converge_smooth import ConvergeSmooth
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
    soft_cross_entropy,
    update,
)


def convergence_term(model: Tiny, batch: Batch, method: Method, at: At, literal: Literal) -> Literal:
    """Add w2 · ℓ, subtract it, or leave it out; the clean pass comes after the update's."""
    assert isinstance(method, ConvergeSmooth)
    logits = literal.start_logits if method.initialize else model(batch.images)
    assert logits is not None
    clean = soft_cross_entropy(logits, batch.labels, 0.6)
    literal.loss = literal.loss + factor(method, at, clean.item()) * clean
    return literal


def factor(method: ConvergeSmooth, at: At, clean: float) -> float:
    """What ℓ is multiplied with: w2, −w2 or 0."""
    if not 1 < at.epoch < 9:
        return 0.0
    means = method.kept["clean_means"]
    assert isinstance(means, Tensor)
    last, before = means.tolist()
    threshold = min(max(method.gamma / method.ratio, last - before), method.gamma)
    if abs(clean - last) <= threshold:
        return 0.0
    return method.weight if clean > last else -method.weight


def cs_mep(model: Tiny, batch: Batch, method: Method, at: At) -> Literal:
    delta0 = method.memory("prior").gather()[batch.indices].clone()
    return convergence_term(model, batch, method, at, single_step(model, batch, delta0, EPSILON, 0.6))


def cs_rs(model: Tiny, batch: Batch, method: Method, at: At) -> Literal:
    start = clip(batch.images + EPSILON * draw_uniform(draws(at), batch), 0, 1)
    gradient, features, logits = attack_gradient(model, start, batch.labels)
    images = clip(start + EPSILON * gradient.sign(), 0, 1)
    return convergence_term(model, batch, method, at, update(model, images, batch, 0.6, features, logits))


REFERENCES = {"cs-mep": cs_mep, "cs-rs": cs_rs}
