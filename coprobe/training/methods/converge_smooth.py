"""ConvergeSmooth: the clean loss is kept from jumping between epochs; with the step of FGSM-MEP or of FGSM-RS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from coprobe.training.methods.base import METHODS, Method, check_range, soft_cross_entropy
from coprobe.training.methods.fgsm_mep import FGSMMEP
from coprobe.training.update import AdversarialInputs, Pass, TrainingContext, UpdateState, uniform


@dataclass(kw_only=True)
class ConvergeSmooth(Method):
    """The convergence term, for a method that makes the perturbation (Zhao et al. 2023, as in the public code).

    ℓ is the method's loss on the clean images of the batch, ℓ̄ its mean over the epoch before, β the change of that
    mean from the epoch before it. Where |ℓ − ℓ̄| > min(max(gamma / ratio, β), gamma), weight · ℓ is added to the loss
    if ℓ is above ℓ̄ and subtracted if it is below. So in epoch e (from 0) only if first + 1 < e < end − 1 of a stretch
    of constant learning rate; ℓ is measured in every epoch.

    history.csv has ℓ as `clean_loss`, and how often the term was there (a fraction of the updates) as
    `smooth_active`.

    Args:
        gamma: the largest tolerated deviation.
        ratio: gamma over the smallest tolerated one; 1 makes gamma the threshold whatever β is.
        weight: of the term.
        initialize: take ℓ at the attack's start x + δ0, without a pass of its own, instead of on clean images.

    Raises:
        InputError: an option out of range.
    """

    gamma: float = 0.03
    ratio: float = 1.0
    weight: float = 1.0
    initialize: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("gamma", self.gamma, 0)
        check_range("ratio", self.ratio, 0, above=True)
        check_range("weight", self.weight, 0)

    def prepare(self, context: TrainingContext) -> None:
        """Begin with means of 0, which no epoch looks at."""
        super().prepare(context)
        # The sum of ℓ over this epoch's images so far, and their number.
        self.kept["clean_totals"] = torch.zeros(2, device=context.device)
        # ℓ̄, and that of the epoch before.
        self.kept["clean_means"] = torch.zeros(2, device=context.device)

    @property
    def keeps_graph(self) -> bool:
        """With `initialize`."""
        return self.initialize

    def begin_epoch(self, epoch: int, generator: torch.Generator) -> None:
        """Turn the sum of ℓ over the last epoch's images into its mean."""
        super().begin_epoch(epoch, generator)
        (total, images), (latest, _) = self.tensor("clean_totals"), self.tensor("clean_means")
        self.kept["clean_means"] = torch.stack([total / images.clamp(min=1), latest])
        self.kept["clean_totals"] = torch.zeros_like(self.tensor("clean_totals"))

    def active(self, epoch: int) -> bool:
        """Whether the term may be used in this epoch."""
        return any(first + 1 < epoch < end - 1 for first, end in self.context.phases)

    def objective(self, update: UpdateState, inputs: AdversarialInputs, final: Pass) -> Tensor:
        """The method's objective with the convergence term."""
        batch = update.batch
        # The public code, too, makes this pass after the update's, in training mode: running statistics see it.
        logits = inputs.start.logits if self.initialize and inputs.start else update.model(batch.images)
        loss = self.loss(logits, batch.labels)
        clean = self.context.processes.sum(loss.detach() * batch.fraction)
        images = torch.full_like(clean, len(batch.whole))
        self.kept["clean_totals"] = self.tensor("clean_totals") + torch.stack([clean * images, images])
        direction = self._direction(clean) if self.active(update.epoch) else torch.zeros_like(clean)
        update.measured.update(clean_loss=clean, smooth_active=direction.abs())
        return super().objective(update, inputs, final) + self.weight * direction * loss

    def _direction(self, clean: Tensor) -> Tensor:
        """1 to add the term, −1 to subtract it, 0 to leave it out; a tensor, so that nothing waits for the device."""
        latest, before = self.tensor("clean_means")
        threshold = (latest - before).clamp(min=self.gamma / self.ratio).clamp(max=self.gamma)
        jump = clean - latest
        return torch.where(jump.abs() > threshold, jump.sign(), 0.0)


# Where the term is left out its gradient is multiplied by 0: to skip it one would have to wait for the device.
@METHODS.register(
    "cs-mep",
    summary="FGSM-MEP with a clean loss that is kept from jumping (ConvergeSmooth); logit term off by default",
    source="Zhao et al. 2023",
    cost=(5 + 3) / 5,
)
@dataclass(kw_only=True)
class ConvergeSmoothMEP(ConvergeSmooth, FGSMMEP):
    """The perturbation, memory and soft labels of FGSM-MEP, with the convergence term.

    Args:
        gamma, ratio, weight, initialize: of the convergence term; 0.03, 1, 1 and false.
        mep_momentum, label_factor, reset_every: of FGSM-MEP; 0.3, 0.6 and 40.
    """

    default_logit_weight: ClassVar[float] = 0.0


@METHODS.register(
    "cs-rs",
    summary="a random start, one step of size ε not projected to the ball, and ConvergeSmooth's clean loss",
    source="Zhao et al. 2023",
    cost=(5 + 3) / 5,
)
@dataclass(kw_only=True)
class ConvergeSmoothRS(ConvergeSmooth):
    """The step that the public script, which does not run, means to take, with the convergence term.

    x' = x + U(±ε), clamped to [0, 1]; g is the gradient of plain cross-entropy there. x + δ = x' + ε · sign g,
    clamped to [0, 1] but not projected: |δ| goes up to 2 ε. The update's loss and the convergence term have soft
    labels.

    Args:
        gamma, ratio, weight, initialize: of the convergence term; 0.03, 1, 1 and false.
        label_factor: target mass of the true class in the update; the rest is spread evenly over the others.
    """

    label_factor: float = 0.6
    bounded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("label_factor", self.label_factor, 0, 1, above=True)

    def perturb(self, update: UpdateState) -> AdversarialInputs:
        """One pass at x', and a sign step from there."""
        batch = update.batch
        images = (batch.images + self.epsilon * uniform(batch, update.generator)).clamp_(0, 1)
        start = update.forward(images)
        gradient = update.input_gradient(start, cross_entropy(start.logits, batch.labels))
        return AdversarialInputs((images + self.alpha * gradient.sign()).clamp_(0, 1), start, gradient)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy with `label_factor` on the true class."""
        return soft_cross_entropy(logits, labels, self.label_factor)
