"""Checks of gradients: whether they are there, finite, not zero and true, and those of the fast form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coprobe.attacks.input_gradient import input_gradient
from coprobe.checks.base import CHECKS, Finding
from coprobe.checks.passes import alone
from coprobe.checks.subject import FEW, Subject, same
from coprobe.core.engine import BatchSize, in_batches
from coprobe.models.classifier import usable

#: The cosine below which two gradients are not the same but for rounding, and a ReLU here and there.
_ALIKE = 0.99
#: e to minus so much is 0 in float32.
_SATURATED = 104
#: How far pixels are moved to see whether logits change as the gradient promises. The first is small enough for
#: sharply bent networks, the last one large enough for straight-through gradients and low precision.
_DISTANCES = (0.05 / 255, 0.25 / 255, 1 / 255, 2 / 255)
#: The factor up to which they do; and changes, as shares of the largest logit, that may be rounding: of float32, and
#: of a low precision, which nobody declares.
_FACTOR, _NOISE, _COARSE = 2.5, 1e-5, 1e-2


@CHECKS.register("graph", summary="the loss has a finite gradient at every image", quick=False)
def finite(subject: Subject) -> Finding | None:
    """Cut graphs, infinite slopes. Attacks stop at them, so that nothing has to be said beforehand."""
    found = subject.gradients
    if isinstance(found, str):
        return Finding(found)
    count, broken = len(found), int((~found.isfinite().all(1)).sum())
    if not broken:
        return None
    return Finding(
        f"the gradient is not finite (NaN or infinite) at {broken} of {count} images, where attacks stop; look for a "
        "division by zero or the square root of zero"
    )


@CHECKS.register("gradients", summary="the gradient of the loss is not zero", quick=True)
def gradients(subject: Subject) -> Finding | None:
    """Behind rounding, or a softmax that saturates, an attack stands still, which looks like robustness."""
    logits, found = subject.first_pass[0], subject.gradients
    if isinstance(found, str) or not usable(logits).all() or (logits == logits[:1]).all():
        return None  # said elsewhere
    count, none = len(found), int((~found.any(1)).sum())
    if not none:
        return None
    largest = float(logits.abs().max())
    cause = "rounding, sign or another step function inside"
    if largest > _SATURATED:
        cause = f"logits up to {largest:.3g}, at which the softmax saturates: divide them by as much"
    return Finding(
        f"the gradient is exactly zero at {none} of {count} images ({cause}); attacks by gradients can't move them, so "
        "accuracy under these is no robustness: try square"
    )


@CHECKS.register("slope", summary="logits change as their gradient promises", quick=True)
def slope(subject: Subject) -> Finding | None:
    """A backward pass that is not that of the forward pass: reversed, noise, or what leaks past a step function.

    The margin before the runner-up, which no softmax saturates, is compared with its gradient at some distances. An
    image speaks against the gradient if the change is more than rounding, and at no distance what was promised:
    straight-through gradients are right at 1/255, and those of networks that are bent sharply nearer than that.
    """
    logits, changed, drew = subject.first_pass
    if changed or drew or not subject.repeats or isinstance(subject.gradients, str):
        return None  # said elsewhere
    images, labels = subject.images[:FEW], subject.labels[:FEW]
    rivals = logits[:FEW].scatter(1, labels[:, None].cpu(), -torch.inf).argmax(1, keepdim=True)
    places = torch.cat([labels[:, None], rivals.to(labels)], 1)
    gradient = _slopes(subject, subject.model, places)
    before, largest = _margin(logits[:FEW], places.cpu()), _largest(logits[:FEW])
    seen, fits = torch.zeros(len(images), dtype=torch.bool), torch.zeros(len(images), dtype=torch.bool)
    ratio = torch.full_like(before, torch.nan)
    for distance in _DISTANCES:
        moved = (images + distance * gradient.sign().to(images)).clamp(0, 1)
        promised = (gradient * (moved - images).double()).flatten(1).sum(1).cpu()
        change = _margin(subject.logits(moved), places.cpu()) - before
        weight = torch.maximum(promised, change.abs()) / largest
        tells = (weight > _NOISE) & (promised > 0)
        ratio = torch.where(tells & ratio.isnan(), change / promised, ratio)
        seen |= tells & (weight > _COARSE)
        fits |= tells & (change >= promised / _FACTOR) & (change <= promised * _FACTOR)
    wrong = seen & ~fits
    if 2 * int(wrong.sum()) <= int(seen.sum()) or alone(subject) is not None:
        return None
    return Finding(
        f"the gradient is not the slope of the logits at {int(wrong.sum())} of {len(images)} images (they change by "
        f"{float(ratio[wrong].median()):.2g} times what it promises), so attacks that follow it are misled, and "
        "accuracy under these is no robustness: attack by square, by transfer from another network, or with pgd-eot",
        misleading=True,
    )


@CHECKS.register("form", summary="the fast form gives the model's logits and gradients", quick=False)
def fast_form(subject: Subject) -> Finding | None:
    """On the images of the check; on the first ones of a run it is compared in any case."""
    if subject.form is None or isinstance(subject.gradients, str) or not subject.repeats:
        return None
    form, logits = subject.form(), subject.first_pass[0]
    if not same(logits, subject.logits(subject.images, form)):
        return Finding("the fast form gives other logits than the model; use --plain, and report it")

    own = subject.labels[:, None]  # of the label's logit, since the loss is nearly flat where the model is sure
    ours, theirs = (_slopes(subject, model, own).flatten(1) for model in (form, subject.model))
    off = (torch.nn.functional.cosine_similarity(ours, theirs) < _ALIKE) & theirs.any(1)
    if off.any():
        return Finding(
            f"the fast form has other gradients than the model at {int(off.sum())} of {len(off)} images; use --plain, "
            "and report it"
        )
    return None


def _slopes(subject: Subject, model: nn.Module, places: Tensor) -> Tensor:
    """The gradient of `_margin` at as many images as there are places; float64, like the images."""

    def work(start: int, stop: int) -> Tensor:
        gradient, _ = input_gradient(model, subject.images[start:stop], lambda z: _margin(z, places[start:stop]))
        return gradient.double()

    return torch.cat(list(in_batches(len(places), work, BatchSize(subject.batch_size, subject.device))))


def _margin(logits: Tensor, places: Tensor) -> Tensor:
    """(batch,): the logit at the first place of each image, less that at the second, if there is one."""
    at = logits.gather(1, places)
    return at[:, 0] - at[:, 1] if places.shape[1] > 1 else at[:, 0]


def _largest(logits: Tensor) -> Tensor:
    """The largest finite logit of each image, by its size: (batch,)."""
    return logits.where(logits.isfinite(), 0.0).abs().amax(1)
