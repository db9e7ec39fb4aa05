"""Free adversarial training: each backward pass serves both the weights and the perturbation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from coprobe.attacks import project
from coprobe.training.methods.base import METHODS, Method, check_range
from coprobe.training.update import AdversarialInputs, TrainingContext, UpdateState


@METHODS.register(
    "free",
    summary="8 updates per batch, whose own gradients move a perturbation shared by all batches",
    source="Shafahi et al. 2019; code of Wong et al. 2020",
    cost=8 * 3 / 5,
)
@dataclass(kw_only=True)
class Free(Method):
    """Free adversarial training as in the code of Wong et al.

    One δ for the whole batch, zero at the start of the run, goes on from replay to replay and from batch to batch;
    a smaller last batch uses its first rows. The update lowers CE(x + δ); the same backward pass gives the gradient
    for δ ← clip_ε(δ + ε · sign ∇), clamped such that this batch's x + δ is in [0, 1]. The next batch's need not be:
    it is not clamped before its first pass. There is no attack pass that regularizers could compare with.

    Every process holds all of δ and moves its rows; their sum makes it whole again after each update, so that
    neither a smaller last batch nor the number of processes changes which image meets which row.

    Args:
        replays: updates per batch. The public code divides the epochs by it: 10 of 8 replays, with a peak learning
            rate of 0.04.

    Raises:
        InputError: fewer than one replay.
    """

    replays: int = 8
    attacks: ClassVar[bool] = False
    clamped: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_range("replays", self.replays, 1)

    @property
    def updates_per_batch(self) -> int:
        """The replays."""
        return self.replays

    def prepare(self, context: TrainingContext) -> None:
        """Begin with δ = 0."""
        super().prepare(context)
        shape = (context.batch_size, *context.dataset.image_shape)
        self.kept["delta"] = torch.zeros(shape, device=context.device)

    def perturb(self, update: UpdateState) -> AdversarialInputs:
        """The images plus δ, where the update leaves the gradient for `after_backward`."""
        batch = update.batch
        return AdversarialInputs((batch.images + self.tensor("delta")[batch.part]).requires_grad_())

    def after_backward(self, update: UpdateState, inputs: AdversarialInputs) -> None:
        """Move δ by the gradient that the update left at the images."""
        batch, images = update.batch, inputs.images
        assert images.grad is not None
        moved = project(images.detach() + self.alpha * images.grad.sign(), batch.images, self.epsilon)
        rows = batch.images.new_zeros(len(batch.whole), *batch.images.shape[1:])
        rows[batch.part] = moved - batch.images
        rest = self.tensor("delta")[len(rows) :]
        self.kept["delta"] = torch.cat([self.context.processes.sum(rows), rest])
