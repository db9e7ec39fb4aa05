from __future__ import annotations

import torch
from torch import Tensor

from coprobe.data import Batch
from coprobe.training.methods import Method
from coprobe.training.methods.atas import ATAS
from tests.training.references.common import EPSILON, SHAPE, At, Literal, Tiny, clip, soft_cross_entropy, update


def crop_and_flip(stored: Tensor, batch: Batch) -> Tensor:
    """From padded rows, (images, padded height, padded width, channels), what each image of the batch gets."""
    channels, height, width = SHAPE
    crops = torch.zeros(len(batch.images), channels, height, width, dtype=stored.dtype)
    for image, index in enumerate(batch.indices.tolist()):
        top, left = (0, 0) if batch.offsets is None else batch.offsets[image].tolist()
        crop = stored[index, top : top + height, left : left + width].permute(2, 0, 1)
        mirrored = batch.mirrored is not None and bool(batch.mirrored[image])
        crops[image] = crop.flip(2) if mirrored else crop
    return crops


def pass_in_evaluation_mode(model: Tiny, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features and logits with the running statistics of now, which the update's pass will change."""
    mean, variance = (each.clone().view(-1, 1, 1) for each in (model.bn.running_mean, model.bn.running_var))
    normal = (model.conv(x) - mean) / (variance + model.bn.eps).sqrt()
    features = model.relu(model.bn.weight.view(-1, 1, 1) * normal + model.bn.bias.view(-1, 1, 1))
    return features, model.linear(features.flatten(1))


def step_sizes(method: ATAS, gradient: Tensor, batch: Batch) -> tuple[list[float], list[float]]:
    """Of each image: the step size, a fraction, and v."""
    sizes, norms = [], []
    kept = method.memory("gradient").gather()
    for image, index in enumerate(batch.indices.tolist()):
        before = (kept[index].item() / method.context.batch_size) ** 2
        v = 0.5 * before + 0.5 * sum(value**2 for value in gradient[image].flatten().tolist())
        sizes.append(min(max(2 * 8 / 255 / (1 + v**0.5 / 0.01), 4 / 255), 14 / 255))
        norms.append(v)
    return sizes, norms


def atas(model: Tiny, batch: Batch, method: Method, at: At) -> Literal:
    assert isinstance(method, ATAS)
    stored = method.memory("perturbation").gather()
    start = clip(batch.images + crop_and_flip(stored, batch), 0, 1).requires_grad_()
    features, logits = pass_in_evaluation_mode(model, start)
    (gradient,) = torch.autograd.grad(soft_cross_entropy(logits, batch.labels), start, retain_graph=True)
    sizes = step_sizes(method, gradient, batch)[0] if at.epoch >= 5 else [EPSILON] * len(batch.images)
    images = torch.stack(
        [
            clip(clip(from_ + size * g.sign(), x - EPSILON, x + EPSILON), 0, 1)
            for from_, size, g, x in zip(start.detach(), sizes, gradient, batch.images, strict=True)
        ]
    )
    return update(model, images, batch, 1.0, features, logits)


REFERENCES = {"atas": atas}
