from __future__ import annotations

import torch
from torch import Tensor

from coprobe.data import Batch
from coprobe.training.methods import Method
from coprobe.training.methods.nuat import NuAT
from tests.training.references.atas import pass_in_evaluation_mode
from tests.training.references.common import EPSILON, At, Literal, Tiny, clip, draw_uniform, draws, soft_cross_entropy


def nuclear_norm(matrix: Tensor) -> Tensor:
    """Σ of the roots of the eigenvalues of AᵀA."""
    return torch.linalg.eigvalsh(matrix.T @ matrix).sqrt().sum()


def nuat(model: Tiny, batch: Batch, method: Method, at: At) -> Literal:
    """With the method's own λ of this epoch; tests/training/methods/test_nuat.py says which it is."""
    assert isinstance(method, NuAT)
    x, images = batch.images, len(batch.images)
    weight = method.weight(at.epoch)
    clean = model(x).detach()
    bernoulli = draw_uniform(draws(at), batch) >= 0
    start = clip(x + EPSILON / 2 * (2.0 * bernoulli - 1), 0, 1).requires_grad_()
    start_features, start_logits = pass_in_evaluation_mode(model, start)
    attacked = soft_cross_entropy(start_logits, batch.labels)
    attacked = attacked + (at.number % 2) * weight * nuclear_norm(start_logits - clean) / images
    (gradient,) = torch.autograd.grad(attacked, start, retain_graph=True)
    delta = clip(clip(start.detach() + EPSILON * gradient.sign(), 0, 1) - x, -EPSILON, EPSILON)
    moved = clip(x + delta, 0, 1)
    features = model.features(moved)
    logits = model.linear(features.flatten(1))
    clean = model(x)
    nuclear = nuclear_norm(logits - clean) / images
    loss = soft_cross_entropy(clean, batch.labels) + weight * nuclear
    return Literal(moved, loss, features, logits, start_features, start_logits)


REFERENCES = {"nuat": nuat}
