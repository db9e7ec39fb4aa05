"""NuAT: single-step training with the nuclear norm of what the perturbation does to the batch's logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coprobe.attacks import project
from coprobe.training.methods.base import METHODS, Method, check_range
from coprobe.training.update import AdversarialInputs, Pass, UpdateState, uniform


@METHODS.register(
    "nuat",
    summary="one step of size ε from ±ε/2; CE on clean images plus the nuclear norm of the logits' change",
    source="Sriramanan et al. 2021",
    # A pass before the attack, the attack, and two passes that reach the weights.
    cost=(1 + 2 + 2 * 3) / 5,
)
@dataclass(kw_only=True)
class NuAT(Method):
    """Nuclear-norm adversarial training after its public code, the script for CIFAR-10 and ResNet-18.

    With ‖·‖ the nuclear norm of a (batch, classes) matrix of logits, divided by the batch:

    1. z = M(x) in training mode, without a gradient.
    2. δ0 = ±ε/2 with equal odds for each pixel, x + δ0 clamped to [0, 1].
    3. In evaluation mode one step of size ε along the sign of ∇ (CE(x + δ0) + λ ‖M(x + δ0) − z‖), projected to the
       ball and to [0, 1]. Only every second update of an epoch, from the second on, has the term with λ here.
    4. In training mode first M(x + δ), then M(x); the update lowers CE(x) + λ ‖M(x) − M(x + δ)‖.

    λ is 0 in the first epoch and rises by the same amount after each, to its full value at `ramp` of the run.
    Column `nuclear`: ‖M(x) − M(x + δ)‖ without λ.

    From the publication's own formulas, as its repository shows them: both objectives, and that they take logits and
    not probabilities. From the script alone: the numbers, the modes, the division by the batch, the rise of λ, and
    that every other attack leaves λ out. Not verified, since the text of the paper was not at hand: whether it
    prescribes the last two, and how δ0 and λ change with ε (the script knows 8/255 only, with a fixed start of
    ±4/255; here the start scales with ε and λ does not).

    Where it differs from the script: the rise ends at 90 % of the epochs, there 10 epochs before the end, which is
    the same for its 100; a smaller last batch is divided by its own size, there by that of the others.

    The norm grows like the root of the number of images, so divided by the batch it shrinks with larger batches: the
    script's λ is for batches of 64. Of several processes each takes the norm of its own part of the batch and the
    update their mean, which is larger than the norm of the whole (about √2 times for two). The decomposition behind
    the norm waits for the GPU, twice per update.

    Args:
        nuclear_weight: λ at its full value.
        noise: size of δ0 as a multiple of ε.
        ramp: fraction of the run over which λ rises; 0 has it in full from the start.

    Raises:
        InputError: ramp or noise outside [0, 1], or a negative weight.
    """

    nuclear_weight: float = 4.5
    noise: float = 0.5
    ramp: float = 0.9

    def __post_init__(self) -> None:
        check_range("ramp", self.ramp, 0, 1)
        check_range("nuclear_weight", self.nuclear_weight, 0)
        check_range("noise", self.noise, 0, 1)

    def weight(self, epoch: int) -> float:
        """λ in this epoch."""
        end = self.ramp * self.context.epochs
        return self.nuclear_weight * (epoch / end if epoch < end else 1.0)

    def perturb(self, update: UpdateState) -> AdversarialInputs:
        """Steps 1 to 3; `start` is in evaluation mode."""
        x = update.batch.images
        with torch.no_grad():
            clean = update.model(x)
        corners = self.noise * self.epsilon * uniform(update.batch, update.generator).sign()
        start = update.forward((x + corners).clamp_(0, 1), training=False)
        loss = self.loss(start.logits, update.batch.labels)
        weight = self.weight(update.epoch) if update.number % 2 else 0.0
        if weight:
            loss = loss + weight * nuclear_norm(start.logits - clean)
        gradient = update.input_gradient(start, loss)
        images = project(start.images.detach() + self.alpha * gradient.sign(), x, self.epsilon)
        return AdversarialInputs(images, start, gradient)

    def objective(self, update: UpdateState, inputs: AdversarialInputs, final: Pass) -> Tensor:
        """Step 4 (scalar)."""
        clean = update.model(update.batch.images)
        nuclear = nuclear_norm(clean - final.logits)
        update.measured["nuclear"] = nuclear.detach()
        return self.loss(clean, update.batch.labels) + self.weight(update.epoch) * nuclear


def nuclear_norm(change: Tensor) -> Tensor:
    """The sum of the singular values of a (batch, classes) matrix, divided by the batch (scalar)."""
    # There is no singular value decomposition in half precision.
    exact = change.to(torch.promote_types(change.dtype, torch.float32))
    return torch.linalg.matrix_norm(exact, "nuc") / len(exact)
