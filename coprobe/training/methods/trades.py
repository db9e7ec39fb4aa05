"""TRADES: the trade-off between accuracy on x and agreement between x and x + δ."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from coprobe.training.methods.base import METHODS, check_range
from coprobe.training.methods.multi_step import MultiStep
from coprobe.training.update import AdversarialInputs, Pass, UpdateState


@METHODS.register(
    "trades",
    summary="CE on clean images plus 6 times the divergence at x + δ, of 10 steps of 2/255",
    source="Zhang et al. 2019",
    # A clean pass, the attack, and two passes that reach the weights.
    cost=(1 + 10 * 2 + 2 * 3) / 5,
)
@dataclass(kw_only=True)
class TRADES(MultiStep):
    """TRADES (L∞) after its public code.

    δ0 = 0.001 · N(0, 1); then x + δ ← x + clip_ε(δ + α · sign ∇ KL(p(x) ‖ p(x + δ))), clamped to [0, 1], all in
    evaluation mode; so is the pass at x + δ0 with which regularizers compare the update's. The update, in training
    mode, lowers CE(x) + β · KL(p(x) ‖ p(x + δ)), mean over the batch, through both arguments of KL.
    Column `kl`: the divergence without β.

    Where it differs from the public code: α is 2/255, there 0.007 with ε = 0.031; p(x) is computed once for all
    steps, there anew in each, with the same result; the update makes one pass at x + δ and then one at x, there one
    at x, one at x + δ and a second at x, so that loss and gradient are equal but the running batch-norm statistics
    see x half as often.

    Args:
        iterations: number of steps, of α = 2/255 whatever ε.
        beta: weight of the divergence (1/λ in the paper).
    """

    beta: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("beta", self.beta, 0)

    def perturb(self, update: UpdateState) -> AdversarialInputs:
        """All the steps, in evaluation mode; `start` is the pass of the first of them."""
        batch, x = update.batch, update.batch.images
        # For the whole batch, so that it doesn't depend on the number of processes.
        shape = (len(batch.whole), *x.shape[1:])
        draw = torch.randn(shape, generator=update.generator, device=x.device)[batch.part]
        with torch.no_grad():
            clean = update.forward(x, training=False).logits
        # The sum instead of the mean: only the gradient's sign counts.
        return self.ascend(update, x + 0.001 * draw, lambda logits: _divergence(clean, logits).sum(), training=False)

    def objective(self, update: UpdateState, inputs: AdversarialInputs, final: Pass) -> Tensor:
        """Cross-entropy at x plus β times the divergence (scalar)."""
        clean = update.model(update.batch.images)
        divergence = _divergence(clean, final.logits).mean()
        update.measured["kl"] = divergence.detach()
        return self.loss(clean, update.batch.labels) + self.beta * divergence


def _divergence(clean: Tensor, other: Tensor) -> Tensor:
    """KL(softmax(clean) ‖ softmax(other)) of each image, (batch,), from logits."""
    return kl_div(log_softmax(other, 1), log_softmax(clean, 1), reduction="none", log_target=True).sum(1)
