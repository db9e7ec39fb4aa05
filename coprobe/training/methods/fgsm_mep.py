"""FGSM with prior-guided initialisation and momentum (FGSM-MEP), the baseline of the paper."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from coprobe.data import Batch
from coprobe.training.methods.base import METHODS, SingleStep


@METHODS.register(
    "fgsm-mep",
    summary="one step of size ε from a perturbation stored per image; logit term (Eq. 10) on by default",
    source="Jia et al. 2022",
    passes=2,
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
    """

    mep_momentum: float = 0.3
    label_factor: float = 0.6
    reset_every: int = 40
    default_logit_weight: ClassVar[float] = 10.0
    _prior: Tensor = field(init=False, repr=False)
    _gradient: Tensor = field(init=False, repr=False)

    def begin_epoch(self, epoch: int, images: int, shape: tuple[int, ...], device: torch.device) -> None:
        """Reset the memory in epochs 0, reset_every, 2 · reset_every and so on."""
        super().begin_epoch(epoch, images, shape, device)
        if epoch % self.reset_every == 0:
            draw = torch.rand((images, *shape), generator=self.generator, device=device)
            self._prior = self.epsilon * (2 * draw - 1).sign()
            self._gradient = torch.zeros_like(self._prior)

    def start(self, batch: Batch) -> Tensor:
        """The stored priors."""
        return self._prior[batch.indices]

    def step(self, delta: Tensor, gradient: Tensor, batch: Batch) -> Tensor:
        """Update the memory, then take the sign step."""
        index = batch.indices
        self._gradient[index] = gradient / gradient.abs().sum() + self.mep_momentum * self._gradient[index]
        self._prior[index] = super().step(delta, self._gradient[index], batch) - batch.images
        return super().step(delta, gradient, batch)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy with `label_factor` on the true class."""
        classes = logits.shape[1]
        return cross_entropy(logits, labels, label_smoothing=(1 - self.label_factor) * classes / (classes - 1))
