"""FGSM with prior-guided initialisation and momentum (FGSM-MEP), the baseline of the paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from coprobe.data import Batch
from coprobe.training.methods.base import METHODS, SingleStep, check_range, soft_cross_entropy
from coprobe.training.update import UpdateState


@METHODS.register(
    "fgsm-mep",
    summary="one step of size ε from a perturbation stored per image; logit term (Eq. 10) on by default",
    source="Jia et al. 2022",
    # The logit term goes back through the pass at x + δ0 as well.
    cost=7 / 5,
)
@dataclass(kw_only=True)
class FGSMMEP(SingleStep):
    """FGSM-MEP as in its public code.

    δ0 = P[i], the stored prior, added to whatever crop is drawn and not clamped to [0, 1]. With the gradient
    g there: m[i] ← g / ‖g‖₁ + momentum · m[i] (the norm over the whole batch), P[i] ← clip_ε(δ0 + α · sign m),
    δ = clip_ε(δ0 + α · sign g), both such that the image stays in [0, 1]. Attack and update use soft labels.

    Args:
        mep_momentum: of the stored gradient.
        label_factor: target mass of the true class; the rest is spread evenly over the others.
        reset_every: epochs after which m is zeroed and P drawn anew from the corners ±ε (10 for CIFAR-100).

    Raises:
        InputError: an option out of range.
    """

    mep_momentum: float = 0.3
    label_factor: float = 0.6
    reset_every: int = 40
    default_logit_weight: ClassVar[float] = 10.0

    def __post_init__(self) -> None:
        check_range("mep_momentum", self.mep_momentum, 0, 1)
        check_range("label_factor", self.label_factor, 0, 1, above=True)
        check_range("reset_every", self.reset_every, 1)

    def begin_epoch(self, epoch: int, generator: torch.Generator) -> None:
        """Reset the memory in epochs 0, reset_every, 2 · reset_every and so on."""
        if epoch % self.reset_every == 0:
            data = self.context.dataset
            draw = torch.rand((len(data), *data.image_shape), generator=generator, device=self.context.device)
            self.kept["prior"] = self.remember(self.epsilon * (2 * draw - 1).sign())
            self.kept["momentum"] = self.remember(torch.zeros_like(draw))

    def start(self, update: UpdateState) -> Tensor:
        """The stored priors."""
        return self.memory("prior").read(update.batch)

    def step(self, delta: Tensor, gradient: Tensor, batch: Batch) -> Tensor:
        """Update the memory, then take the sign step."""
        norm = self.context.processes.sum(gradient.abs().sum())
        # Only the sign of m is used: as many times as large, it fits into half precision.
        scale = self.context.batch_size * gradient[0].numel()
        momentum = scale * gradient / norm + self.mep_momentum * self.memory("momentum").read(batch)
        self.memory("momentum").write(batch, momentum)
        self.memory("prior").write(batch, super().step(delta, momentum, batch) - batch.images)
        return super().step(delta, gradient, batch)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy with `label_factor` on the true class."""
        return soft_cross_entropy(logits, labels, self.label_factor)
