"""Adversarial training with projected gradient descent."""

from __future__ import annotations

from dataclasses import dataclass

from coprobe.training.methods.base import METHODS, random_start
from coprobe.training.methods.multi_step import MultiStep
from coprobe.training.update import AdversarialInputs, UpdateState


@METHODS.register(
    "pgd-at",
    summary="7 steps of 2/255 from a random start",
    source="Madry et al. 2018; code of Wong et al. 2020",
    cost=(7 * 2 + 3) / 5,
)
@dataclass(kw_only=True)
class PGDAT(MultiStep):
    """PGD adversarial training as in the code of Wong et al.

    δ0 ~ U(±ε) with x + δ0 in [0, 1]; then δ ← clip_ε(δ + α · sign ∇ CE(x + δ)), clamped to [0, 1], in training mode,
    so that the running batch-norm statistics are updated by every pass. No image stops early. CE at x + δ.

    Args:
        iterations: number of steps, of α = 2/255 whatever ε.
    """

    iterations: int = 7

    def perturb(self, update: UpdateState) -> AdversarialInputs:
        """All the steps; `start` is the first pass, at x + δ0."""
        start = update.batch.images + random_start(update, self.epsilon)
        return self.ascend(update, start, lambda logits: self.loss(logits, update.batch.labels))
