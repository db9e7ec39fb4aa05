from __future__ import annotations

import torch

from coprobe.data import Batch
from coprobe.training.methods import Method
from tests.training.references.common import EPSILON, At, Literal, Tiny, clip, draw_uniform, draws, single_step, update


def clean(model: Tiny, batch: Batch, method: Method, at: At) -> Literal:
    return update(model, batch.images, batch)


def fgsm(model: Tiny, batch: Batch, method: Method, at: At) -> Literal:
    return single_step(model, batch, torch.zeros_like(batch.images), EPSILON)


def fgsm_rs(model: Tiny, batch: Batch, method: Method, at: At) -> Literal:
    draw = draw_uniform(draws(at), batch)
    delta0 = clip(batch.images + draw * EPSILON, 0, 1) - batch.images
    return single_step(model, batch, delta0, 1.25 * EPSILON)


REFERENCES = {"clean": clean, "fgsm": fgsm, "fgsm-rs": fgsm_rs}
