"""Attacks that follow the sign of the input gradient: FGSM, PGD and C&W L∞."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import tee
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from coprobe.attacks.base import ATTACKS, PURPOSE, StepAttack, project
from coprobe.attacks.batching import State, Step, in_full_batches
from coprobe.core.engine import BatchSize, frozen, in_batches
from coprobe.core.randomness import ImageRandomness
from coprobe.data.stream import ImageBatch
from coprobe.errors import InputError

_CHOICES = {"start": ("uniform", "zero"), "rule": ("until-misclassified", "always")}


@dataclass(frozen=True, kw_only=True)
class SignGradientAttack(StepAttack):
    """x_{t+1} = project(x_t + step size · sign ∇ loss(model(x_t), y)); other steps override `initial` and `update`.

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

    def initial(self, x: Tensor, randomness: ImageRandomness, restart: int) -> State:
        """What is known of each image before the first step: `x_adv`, a new tensor; extend it for more."""
        if self.start == "zero":
            return {"x_adv": x.clone()}
        noise = randomness.uniform(x.shape[1:], restart).to(x.dtype)
        return {"x_adv": project(x + (2 * noise - 1) * self.epsilon, x, self.epsilon)}

    def update(self, state: State, gradient: Tensor, x: Tensor) -> State:
        """The state after one step along the gradient of each image's loss."""
        # sign(NaN) is 0, which would make a broken gradient look like robustness: it shall reach the images
        sign = torch.where(gradient.isnan(), gradient, gradient.sign())
        return {**state, "x_adv": project(state["x_adv"] + self.schedule[1] * sign, x, self.epsilon)}

    def iterate(self, model: nn.Module, x: Tensor, y: Tensor, randomness: ImageRandomness) -> Iterator[Tensor]:
        """Yield x_0 … x_T of the first run; all images go through the network at every step."""
        return self._iterate(model, x, y, randomness, 0)

    def _iterate(
        self, model: nn.Module, x: Tensor, y: Tensor, randomness: ImageRandomness, restart: int
    ) -> Iterator[Tensor]:
        state = self.initial(x, randomness, restart)
        yield state["x_adv"]
        for taken in range(self.schedule[0]):
            state = self._step(model, x, y, randomness, state, (restart, taken)).state
            yield state["x_adv"]

    def _step(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        randomness: ImageRandomness,
        state: State,
        place: tuple[int | Tensor, ...],
    ) -> Step:
        """One step, and which images it moved; `place` is the restart and the number of the step."""
        gradient, logits = self._gradient(model, state["x_adv"], y, randomness, place)
        stepped = self.update(state, gradient, x)
        if self.rule == "always":
            return Step(stepped, None)
        correct = logits.argmax(1) == y
        kept = {
            name: torch.where(correct.view(-1, *[1] * (value.dim() - 1)), value, state[name])
            for name, value in stepped.items()
        }
        return Step(kept, correct)

    def _gradient(
        self, model: nn.Module, point: Tensor, y: Tensor, randomness: ImageRandomness, place: tuple[int | Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """The gradient of each image's loss at `point`, and the logits; random numbers are for random gradients."""
        with torch.enable_grad():
            point = point.detach().requires_grad_()
            logits = model(point)
            # The sum, not the mean: each image's gradient then does not depend on the size of the batch.
            (gradient,) = torch.autograd.grad(self.loss(logits, y).sum(), point)
        # A branch of the network that gives NaN can have a gradient of 0, which would look like robustness, too.
        gradient = torch.where(logits.isfinite().all(1).view(-1, 1, 1, 1), gradient, torch.nan)
        return gradient, logits.detach()

    def unit(self, batch_size: int) -> int:
        """One: no image depends on another."""
        return 1

    def run(self, model: nn.Module, x: Tensor, y: Tensor, randomness: ImageRandomness) -> Tensor:
        """The last iterate; of several restarts, per image the one with the largest cross-entropy."""

        def last(restart: int) -> Tensor:
            *_, x_adv = self._iterate(model, x, y, randomness, restart)
            return x_adv

        return self._best(model, y, (last(restart) for restart in range(self.schedule[2])), BatchSize(device=x.device))

    def stream(self, model: nn.Module, batches: Iterator[ImageBatch], seed: int, size: BatchSize) -> Iterator[Tensor]:
        """As `run`, but images that are done leave the batch, and the next ones take their places."""
        inputs = tee(batches, self.schedule[2])
        runs = [self._run_in_full_batches(model, images, seed, size, n) for n, images in enumerate(inputs)]
        for restarts in zip(*runs, strict=True):
            batch = restarts[0][0]
            with frozen(model):
                best = self._best(model, batch.labels, (x_adv for _, x_adv in restarts), size)
            yield self.checked(best, batch.images)

    def _run_in_full_batches(
        self, model: nn.Module, batches: Iterator[ImageBatch], seed: int, size: BatchSize, restart: int
    ) -> Iterator[tuple[ImageBatch, Tensor]]:
        def step(x: Tensor, y: Tensor, randomness: ImageRandomness, state: State, taken: Tensor) -> Step:
            with frozen(model):
                return self._step(model, x, y, randomness, state, (restart, taken))

        def start(x: Tensor, randomness: ImageRandomness) -> State:
            return self.initial(x, randomness, restart)

        return in_full_batches(batches, (seed, PURPOSE), start, step, self.schedule[0], size)

    def _best(self, model: nn.Module, y: Tensor, restarts: Iterator[Tensor], size: BatchSize) -> Tensor:
        best = next(restarts)
        if self.schedule[2] == 1:
            return best

        def loss_of(x_adv: Tensor) -> Tensor:
            def work(start: int, stop: int) -> Tensor:
                return cross_entropy(model(x_adv[start:stop]), y[start:stop], reduction="none")

            with torch.no_grad():
                return torch.cat([y.new_empty(0, dtype=x_adv.dtype), *in_batches(len(x_adv), work, size)])

        best_loss = loss_of(best)
        for x_adv in restarts:
            loss = loss_of(x_adv)
            better = ~(loss <= best_loss)  # so that an image whose loss is NaN is kept, for the caller to see
            best = torch.where(better.view(-1, 1, 1, 1), x_adv, best)
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
