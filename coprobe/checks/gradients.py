"""Checks of gradients: whether they are there, finite and not zero, and those of the fast form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coprobe.attacks.input_gradient import input_gradient
from coprobe.checks.base import CHECKS, Finding
from coprobe.checks.subject import Subject, same
from coprobe.models.classifier import usable

#: The cosine below which two gradients are not the same but for rounding, and a ReLU here and there.
_ALIKE = 0.99
#: e to minus so much is 0 in float32.
_SATURATED = 104


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


@CHECKS.register("form", summary="the fast form gives the model's logits and gradients", quick=False)
def fast_form(subject: Subject) -> Finding | None:
    """On the images of the check; on the first ones of a run it is compared in any case."""
    if subject.form is None or isinstance(subject.gradients, str) or not subject.repeats:
        return None
    form, logits = subject.form(), subject.first_pass[0]
    if not same(logits, subject.logits(subject.images, form)):
        return Finding("the fast form gives other logits than the model; use --plain, and report it")

    def slopes(model: nn.Module) -> Tensor:
        """Of the label's logit, since that of the loss is nearly nothing where the model is sure."""
        gradient, _ = input_gradient(model, subject.images, lambda z: z.gather(1, subject.labels[:, None])[:, 0])
        return gradient.flatten(1).double()

    ours, theirs = slopes(form), slopes(subject.model)
    off = (torch.nn.functional.cosine_similarity(ours, theirs) < _ALIKE) & theirs.any(1)
    if off.any():
        return Finding(
            f"the fast form has other gradients than the model at {int(off.sum())} of {len(off)} images; use --plain, "
            "and report it"
        )
    return None
