from __future__ import annotations

import torch
from torch import Tensor

from coprobe.data import Batch
from coprobe.training.methods import Method
from tests.training.references.atas import pass_in_evaluation_mode
from tests.training.references.common import CLASSES, EPSILON, At, Literal, Tiny, clip, draws, soft_cross_entropy


def divergence(clean: Tensor, other: Tensor) -> Tensor:
    """Σ over the batch and the classes of p · (log p − log q), one term at a time."""
    total = torch.zeros((), dtype=clean.dtype)
    for row, changed in zip(clean, other, strict=True):
        log_p, log_q = row - torch.logsumexp(row, 0), changed - torch.logsumexp(changed, 0)
        for k in range(CLASSES):
            total = total + log_p[k].exp() * (log_p[k] - log_q[k])
    return total


def trades(model: Tiny, batch: Batch, method: Method, at: At) -> Literal:
    x = batch.images
    moving = x + 0.001 * torch.randn(x.shape, generator=draws(at))
    passes = []
    clean = pass_in_evaluation_mode(model, x)[1].detach()
    for _ in range(10):
        moving = moving.detach().requires_grad_()
        features, logits = pass_in_evaluation_mode(model, moving)
        passes.append((features, logits))
        (gradient,) = torch.autograd.grad(divergence(clean, logits), moving, retain_graph=True)
        moving = clip(clip(moving + 2 / 255 * gradient.sign(), x - EPSILON, x + EPSILON), 0, 1)
    moving = moving.detach()
    features = model.features(moving)
    logits = model.linear(features.flatten(1))
    clean = model(x)
    loss = soft_cross_entropy(clean, batch.labels) + 6 * divergence(clean, logits) / len(x)
    return Literal(moving, loss, features, logits, *passes[0])


REFERENCES = {"trades": trades}
