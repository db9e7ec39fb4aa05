"""Terms that compare the update's pass at x + δ with the attack's pass at x + δ0; composable with any method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn.functional import mse_loss


@dataclass(frozen=True)
class Pass:
    """One forward pass: logits (batch, classes) and activations by node, with their graph."""

    logits: Tensor
    activations: Mapping[str, Tensor]


class Regularizer(Protocol):
    """A weighted term of the loss."""

    @property
    def name(self) -> str:
        """Column of the unweighted term in history.csv."""
        ...

    @property
    def weight(self) -> float:
        """Its factor in the loss."""
        ...

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that must be recorded."""
        ...

    def __call__(self, final: Pass, start: Pass) -> Tensor:
        """The unweighted term (scalar) from the pass at x + δ and the one at x + δ0."""
        ...


@dataclass(frozen=True)
class FeatureStability:
    """L_stable (Eq. 8) at one node, without its factor: the mean over batch, channels and positions of the
    squared difference of activations. Gradients flow through both passes.

    Args:
        node: B in the paper.
        weight: alpha_3; 200 in the paper.
    """

    node: str
    weight: float
    name: str = "stable"

    @property
    def nodes(self) -> tuple[str, ...]:
        """The node that must be recorded."""
        return (self.node,)

    def __call__(self, final: Pass, start: Pass) -> Tensor:
        """Mean squared difference of the activations (scalar)."""
        return mse_loss(final.activations[self.node], start.activations[self.node])


@dataclass(frozen=True)
class LogitStability:
    """The logit term of FGSM-MEP (Eq. 10), without its factor: the mean over batch and classes of the squared
    difference of logits. Gradients flow through both passes.

    Args:
        weight: λ of the public code, 10, which is γ = λ / classes per sample in the paper's notation.
    """

    weight: float
    name: str = "logit"
    nodes: tuple[str, ...] = ()

    def __call__(self, final: Pass, start: Pass) -> Tensor:
        """Mean squared difference of the logits (scalar)."""
        return mse_loss(final.logits, start.logits)
