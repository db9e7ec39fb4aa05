"""Terms of the loss that can be added to any method with an attack, and the noise of Eqs. 11 and 12."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from coprobe.attacks import AdversarialExamples, parse
from coprobe.data import Batch, balanced_prefix
from coprobe.masking import Selection, count_of_percent, select
from coprobe.metrics import ChannelActivations
from coprobe.nodes import masked
from coprobe.training.update import Pass, TrainingContext, UpdateState, uniform


class Regularizer(ABC):
    """A weighted term of the loss; it compares the update's pass at x + δ with the attack's at x + δ0."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that it looks at."""
        return ()

    def begin_epoch(self, epoch: int, model: nn.Module, context: TrainingContext) -> None:  # noqa: B027 (most need none)
        """Called before every epoch (from 0)."""

    @abstractmethod
    def __call__(self, update: UpdateState, start: Pass, final: Pass) -> Tensor:
        """The weighted term (scalar); puts its unweighted parts into `update.measured`.

        Args:
            update: where in the run it is.
            start: the attack's pass at x + δ0.
            final: the update's pass.
        """

    def state(self) -> dict[str, Any]:
        """What must outlast an interruption in the middle of an epoch, as plain values."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:  # noqa: B027 (most need none)
        """Restore what `state` returned."""


@dataclass(frozen=True)
class FeatureStability(Regularizer):
    """L_stable (Eq. 8) at one node: `weight` times the mean over batch, channels and positions of the squared
    difference of activations. Column `stable`.

    Args:
        node: B in the paper.
        weight: alpha_3; 200 in the paper.
        detach: let no gradient through the pass at x + δ0.
    """

    node: str
    weight: float
    detach: bool = False

    @property
    def nodes(self) -> tuple[str, ...]:
        """The one node."""
        return (self.node,)

    def __call__(self, update: UpdateState, start: Pass, final: Pass) -> Tensor:
        """The weighted mean squared difference (scalar)."""
        before = start.activations[self.node]
        value = mse_loss(final.activations[self.node], before.detach() if self.detach else before)
        update.measured["stable"] = value.detach()
        return self.weight * value


@dataclass(frozen=True)
class LogitStability(Regularizer):
    """The logit term of FGSM-MEP (Eq. 10): `weight` times the mean over batch and classes of the squared difference
    of logits. Gradients flow through both passes. Column `logit`.

    Args:
        weight: λ of the public code, 10, which is γ = λ / classes per image in the paper's notation.
    """

    weight: float

    def __call__(self, update: UpdateState, start: Pass, final: Pass) -> Tensor:
        """The weighted mean squared difference (scalar)."""
        value = mse_loss(final.logits, start.logits)
        update.measured["logit"] = value.detach()
        return self.weight * value


@dataclass
class ChannelDivergence(Regularizer):
    """L_co (Eq. 9), which induces CO: the loss of the network without the channels C_p% of one node, minus `weight`
    times their squared difference of activations, summed over C_p% and divided by all elements of the node.

    The masked loss is of a further training pass at x + δ, which also moves the batch-norm running statistics.
    C_p% holds the channels with the largest T_act, or the largest variance at x + δ, on the first images of each
    training class without augmentation, under PGD-10 at the training radius in evaluation mode.
    Columns `co_masked_loss` and `co_difference`.

    Args:
        node: B in the paper.
        weight: alpha_3.
        percent: p, of the node's channels; at least one channel.
        by: `t-act` or `variance`.
        each_epoch: choose anew at the start of every epoch, not only of the first.
        images: number of training images to choose on.
        epsilon: radius of the attack, a fraction.
        seed: of the attack.
    """

    node: str
    weight: float
    percent: float
    by: str
    each_epoch: bool
    images: int
    epsilon: float
    seed: int
    channels: tuple[int, ...] = field(default=(), init=False)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The one node."""
        return (self.node,)

    def begin_epoch(self, epoch: int, model: nn.Module, context: TrainingContext) -> None:
        """Choose the channels."""
        if epoch and not self.each_epoch:
            return
        chosen = context.dataset.subset(balanced_prefix(context.dataset.labels, self.images))
        attack = parse("pgd:10", self.epsilon)
        examples = AdversarialExamples(model, chosen, [attack], batch_size=250, device=context.device, seed=self.seed)
        statistics = ChannelActivations(nodes=(self.node,), attack=attack.spec).measure(model, examples)
        count = count_of_percent(self.percent, len(statistics.node(self.node)))
        (mask,) = select("top" if self.by == "t-act" else self.by, Selection(statistics, self.node, count=count))
        self.channels = context.processes.broadcast(mask.channels[self.node])

    def __call__(self, update: UpdateState, start: Pass, final: Pass) -> Tensor:
        """Masked loss minus weighted difference (scalar)."""
        with masked(update.model, {self.node: self.channels}):
            masked_loss = update.loss(update.model(final.images), update.batch.labels)
        change = final.activations[self.node] - start.activations[self.node]
        difference = change[:, list(self.channels)].square().sum() / change.numel()
        update.measured.update(co_masked_loss=masked_loss.detach(), co_difference=difference.detach())
        return masked_loss - self.weight * difference

    def state(self) -> dict[str, Any]:
        """The channels in force."""
        return {"channels": list(self.channels)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.channels = tuple(state["channels"])


def noisy_versions(kind: str, images: Tensor, batch: Batch, radius: float, generator: torch.Generator) -> list[Tensor]:
    """The inputs of the update, which lowers the mean of their losses.

    Args:
        kind: `added`: x + δ + δ0 (Eq. 12); `both`: x + δ0 (Eq. 11) and x + δ + δ0, in two passes.
        images: x + δ.
        batch: with x.
        radius: of δ0 ~ U(±radius), fresh in every update; the sum is not projected or clamped.
        generator: of δ0.
    """
    noise = radius * uniform(batch, generator)
    return [images + noise] if kind == "added" else [batch.images + noise, images + noise]
