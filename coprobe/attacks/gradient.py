"""Attacks that follow the sign of the input gradient: FGSM, PGD and C&W L∞."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from coprobe.attacks.base import ATTACKS, StepAttack, project
from coprobe.errors import InputError

_CHOICES = {"start": ("uniform", "zero"), "rule": ("until-misclassified", "always")}


@dataclass(frozen=True, kw_only=True)
class SignGradientAttack(StepAttack):
    """x_{t+1} = project(x_t + step size · sign ∇ loss(model(x_t), y)).

    Args:
        epsilon: radius of the ball, a fraction.
        start: `uniform` in the ball (clamped to [0, 1]) or `zero` perturbation.
        rule: `until-misclassified`: an image moves only while it is classified correctly, as in the official
            evaluation of fast adversarial training, or `always`.
    """

    start: str = "uniform"
    rule: str = "until-misclassified"

    @property
    @abstractmethod
    def schedule(self) -> tuple[int, float, int]:
        """(iterations, step size as a fraction, restarts): what FGSM fixes and PGD lets people choose."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, choices in _CHOICES.items():
            if getattr(self, key) not in choices:
                raise InputError(f"{self.name}: {key} '{getattr(self, key)}' is not one of {', '.join(choices)}")

    @staticmethod
    def loss(logits: Tensor, y: Tensor) -> Tensor:
        """Per-image loss (batch,) that the attack raises."""
        return cross_entropy(logits, y, reduction="none")

    def iterate(self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield x_0 … x_T; finished images leave the batch, so a weak model is attacked quickly."""
        iterations, step_size, _ = self.schedule
        x_adv = x.clone()
        if self.start == "uniform":
            noise = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            x_adv = project(x + (2 * noise - 1) * self.epsilon, x, self.epsilon)
        yield x_adv
        moving = torch.arange(len(x), device=x.device)
        for _ in range(iterations):
            if len(moving):
                point, gradient, logits = self._gradient(model, x_adv[moving], y[moving], generator)
                if self.rule == "until-misclassified":
                    correct = logits.argmax(1) == y[moving]
                    moving, point, gradient = moving[correct], point[correct], gradient[correct]
                x_adv = x_adv.clone()
                # sign(NaN) is 0, which would make a broken gradient look like robustness: it shall reach the images
                sign = torch.where(gradient.isnan(), gradient, gradient.sign())
                x_adv[moving] = project(point + step_size * sign, x[moving], self.epsilon)
            yield x_adv

    def _gradient(
        self, model: nn.Module, point: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The point, the gradient of each image's loss there, and the logits; `generator` is for random gradients."""
        with torch.enable_grad():
            point = point.detach().requires_grad_()
            logits = model(point)
            # The sum, not the mean: each image's gradient then does not depend on the size of the batch.
            (gradient,) = torch.autograd.grad(self.loss(logits, y).sum(), point)
        # A branch of the network that gives NaN can have a gradient of 0, which would look like robustness, too.
        gradient = torch.where(logits.isfinite().all(1).view(-1, 1, 1, 1), gradient, torch.nan)
        return point.detach(), gradient, logits.detach()

    def run(self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """The last iterate; of several restarts, per image the one with the largest cross-entropy."""
        best, best_loss = x, torch.full((len(x),), -torch.inf, device=x.device)
        restarts = self.schedule[2]
        for _ in range(restarts):
            for x_adv in self.iterate(model, x, y, generator):
                last = x_adv
            if restarts == 1:
                return last
            with torch.no_grad():
                loss = cross_entropy(model(last), y, reduction="none")
            better = ~(loss <= best_loss)  # so that an image whose loss is NaN is kept, for the caller to see
            best = torch.where(better.view(-1, 1, 1, 1), last, best)
            best_loss = torch.where(better, loss, best_loss)
        return best


@ATTACKS.register(
    "fgsm",
    summary="one step of size epsilon along the sign of the gradient, from a random start",
    source="Goodfellow et al. 2015; Eq. 3 of the paper with start=zero; random start as in its evaluation code",
    cost=1,
)
@dataclass(frozen=True, kw_only=True)
class FGSM(SignGradientAttack):
    """Fast gradient sign method: one step of size epsilon, projected to the ball."""

    name: ClassVar[str] = "fgsm"
    title: ClassVar[str] = "FGSM"

    @property
    def schedule(self) -> tuple[int, float, int]:
        """(1, epsilon, 1)."""
        return 1, self.epsilon, 1


@ATTACKS.register(
    "pgd",
    summary="projected gradient descent, 10 steps of 2/255 by default (pgd:50 for fifty)",
    source="Madry et al. 2018; Eq. 4 of the paper",
    cost=10,
)
@dataclass(frozen=True, kw_only=True)
class PGD(SignGradientAttack):
    """Projected gradient descent on the cross-entropy.

    Args:
        iterations: number of steps T.
        step_size: a fraction; 2/255 whatever the budget, as in the paper's evaluation.
        restarts: independent runs; per image the one with the largest cross-entropy is kept.
    """

    name: ClassVar[str] = "pgd"
    title: ClassVar[str] = "PGD"
    in_255ths: ClassVar[tuple[str, ...]] = ("epsilon", "step_size")

    iterations: int = 10
    step_size: float = 2 / 255
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("iterations", "restarts"):
            if getattr(self, key) < 1:
                raise InputError(f"{self.name}: {key} {getattr(self, key)}: must be at least 1")
        if not 0 < self.step_size <= 1:
            raise InputError(
                f"{self.name}: step-size {self.step_size * 255:g}/255: must be above 0 and at most 255/255"
            )

    @property
    def schedule(self) -> tuple[int, float, int]:
        """(iterations, step size, restarts) as given."""
        return self.iterations, self.step_size, self.restarts

    @property
    def heading(self) -> str:
        """For example "PGD-50"."""
        return f"{self.title}-{self.iterations}"


@ATTACKS.register(
    "cw",
    summary="PGD on the Carlini-Wagner margin, 20 steps of 2/255 by default",
    source="Carlini and Wagner 2017, as an L∞ attack under PGD",
    cost=20,
)
@dataclass(frozen=True, kw_only=True)
class CW(PGD):
    """PGD that raises the margin max_{j≠y} z_j − z_y instead of the cross-entropy."""

    name: ClassVar[str] = "cw"
    title: ClassVar[str] = "C&W"

    iterations: int = 20

    @staticmethod
    def loss(logits: Tensor, y: Tensor) -> Tensor:
        """The margin (batch,): positive where the image is misclassified."""
        true = logits.gather(1, y[:, None])
        others = logits.scatter(1, y[:, None], -torch.inf)
        return others.amax(1) - true[:, 0]

    @property
    def heading(self) -> str:
        """The title, with the number of steps where it is not 20."""
        return self.title if self.iterations == 20 else f"{self.title}-{self.iterations}"
