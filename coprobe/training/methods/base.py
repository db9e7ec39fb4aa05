"""What every training method has in common, and the registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from coprobe.attacks import project
from coprobe.data import Batch
from coprobe.engine import generator_for
from coprobe.errors import InputError
from coprobe.registry import Registry

#: Every training method by name. Facts: `passes`, forward and backward passes per update.
METHODS: Registry[type[Method]] = Registry("training method")


@dataclass(frozen=True)
class Perturbed:
    """What a method trains on.

    Attributes:
        images: x + δ, float (batch, channels, height, width).
        start_logits: logits at the attack's starting point x + δ0, with their graph if it was kept;
            None for a method without an attack.
    """

    images: Tensor
    start_logits: Tensor | None


@dataclass(kw_only=True)
class Method(ABC):
    """A training method: how images are perturbed, and the loss of the update.

    Args:
        epsilon: radius of the perturbation, a fraction.
        step_size: of the attack, a fraction; None takes `default_step` × epsilon.
        seed: of the method's own randomness.
    """

    epsilon: float
    step_size: float | None = None
    seed: int = 0
    default_step: ClassVar[float] = 1.0
    default_logit_weight: ClassVar[float] = 0.0
    generator: torch.Generator = field(init=False, repr=False)

    @property
    def alpha(self) -> float:
        """The step size in force, a fraction."""
        return self.default_step * self.epsilon if self.step_size is None else self.step_size

    def begin_epoch(self, epoch: int, images: int, shape: tuple[int, ...], device: torch.device) -> None:
        """Called before every epoch with the size of the data set; extend it to keep or reset a memory."""
        self.generator = generator_for(self.seed, "perturbation", epoch, device=device)

    @abstractmethod
    def perturb(self, model: nn.Module, batch: Batch, *, keep_graph: bool) -> Perturbed:
        """The images to train on; the model is in training mode.

        Args:
            model: images to logits.
            batch: images in [0, 1], labels, indices into the data set.
            keep_graph: keep the graph of the pass at x + δ0, because a regulariser reads it.
        """

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The classification loss (scalar, mean over the batch) of attack and update."""
        return cross_entropy(logits, labels)


class SingleStep(Method):
    """δ from one gradient at x + δ0; subclasses say where δ0 comes from and what becomes of the gradient.

    The gradient is taken in training mode, so batch-norm statistics are those of the batch and the running
    ones are updated twice per step, as in the public code of these methods.
    """

    @abstractmethod
    def start(self, batch: Batch) -> Tensor:
        """δ0, like the images."""

    def step(self, delta: Tensor, gradient: Tensor, batch: Batch) -> Tensor:
        """X + δ from δ0 and the gradient there: one sign step, projected to the ball and to [0, 1]."""
        return project(batch.images + delta + self.alpha * gradient.sign(), batch.images, self.epsilon)

    def perturb(self, model: nn.Module, batch: Batch, *, keep_graph: bool) -> Perturbed:
        """One pass at x + δ0, its gradient with respect to δ0, and `step`."""
        delta = self.start(batch).requires_grad_()
        logits = model(batch.images + delta)
        (gradient,) = torch.autograd.grad(self.loss(logits, batch.labels), delta, retain_graph=keep_graph)
        return Perturbed(self.step(delta.detach(), gradient, batch), logits)


def make_method(name: str, options: Mapping[str, Any], **common: Any) -> Method:
    """The method called `name`, with its own `options` (numbers as text or as numbers).

    Raises:
        InputError: unknown method or option, or an option that is no number.
    """
    method = METHODS[name]
    shared = {f.name for f in fields(Method)}
    own = {f.name: f for f in fields(method) if f.name not in shared and f.init}
    given: dict[str, Any] = {}
    for option, value in options.items():
        key = option.replace("-", "_")
        if key not in own:
            takes = ", ".join(own) or "none"
            raise InputError(f"method {name} has no option '{key}'; its options: {takes}")
        try:
            given[key] = int(value) if own[key].type == "int" else float(value)
        except ValueError:
            raise InputError(f"option {key} of method {name} takes a number, not '{value}'") from None
    return method(**common, **given)
