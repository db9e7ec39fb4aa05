"""Attacks that follow the input gradient, by its sign (L∞) or its direction (L2): FGSM, PGD and C&W."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import tee
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from coprobe.attacks.ball import length, steepest
from coprobe.attacks.base import ATTACKS, PURPOSE, StepAttack
from coprobe.attacks.batching import State, Step, in_full_batches
from coprobe.attacks.input_gradient import Blindness, input_gradient
from coprobe.attacks.tally import Tally
from coprobe.core.engine import BatchSize, frozen, in_batches
from coprobe.core.randomness import ImageRandomness
from coprobe.data.stream import ImageBatch
from coprobe.errors import InputError
from coprobe.models.classifier import usable

_TARGETS = ("none", "next", "random")
#: The number of the draw of random targets; restarts have the first ones.
_TARGET_DRAW = 2**31

#: A share of images without a gradient below which nobody needs to be told.
_FEW = 0.01

#: In the state of an image: whether the attack saw a gradient of zero in its last step, and has not broken it.
BLIND = "blind"

_CHOICES = {"start": ("uniform", "zero"), "rule": ("until-misclassified", "always")}


@dataclass(frozen=True, kw_only=True)
class GradientAttack(StepAttack):
    """x_{t+1} = project(x_t + step size · direction of ∇ loss(model(x_t), y)).

    The direction is the gradient's sign for L∞, and the gradient over its length for L2. Other steps override `initial`
    and `update`.

    Args:
        epsilon, norm: see `Ball`.
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

    @cached_property
    def blindness(self) -> Blindness:
        """How many images gave no gradient, of all that this instance has attacked."""
        return Blindness()

    @property
    def tallies(self) -> list[Tally]:
        """`blindness`."""
        return [self.blindness]

    @staticmethod
    def loss(logits: Tensor, y: Tensor) -> Tensor:
        """Per-image loss (batch,) that the attack raises."""
        return cross_entropy(logits, y, reduction="none")

    def initial(self, x: Tensor, randomness: ImageRandomness, restart: int) -> State:
        """What is known of each image before the first step: `x_adv`, a new tensor; extend it for more."""
        if self.start == "zero":
            return {"x_adv": x.clone()}
        return {"x_adv": self.ball.project(self.ball.random(x, randomness, restart), x)}

    def update(self, state: State, gradient: Tensor, x: Tensor) -> State:
        """The state after one step along the gradient of each image's loss."""
        moved = state["x_adv"] + self.schedule[1] * steepest(gradient, self.norm)
        return {**state, "x_adv": self.ball.project(moved, x)}

    def iterate(self, model: nn.Module, x: Tensor, y: Tensor, randomness: ImageRandomness) -> Iterator[Tensor]:
        """Yield x_0 … x_T of the first run; all images go through the network at every step."""
        return (state["x_adv"] for state in self._iterate(model, x, y, randomness, 0))

    def _iterate(
        self, model: nn.Module, x: Tensor, y: Tensor, randomness: ImageRandomness, restart: int
    ) -> Iterator[State]:
        state = self.initial(x, randomness, restart)
        yield state
        for taken in range(self.schedule[0]):
            state = self._step(model, x, y, randomness, state, (restart, taken)).state
            yield state

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
        labels, sign = self.aim(logits, y, randomness)
        unbroken = (logits.argmax(1) == labels) == (sign > 0)
        blind = unbroken & ~gradient.flatten(1).any(1)
        stepped = self.update(state, gradient, x)
        if self.rule == "always":
            return Step({**stepped, BLIND: blind}, None)
        kept = {
            name: torch.where(unbroken.view(-1, *[1] * (value.dim() - 1)), value, state[name])
            for name, value in stepped.items()
        }
        return Step({**kept, BLIND: blind}, unbroken)

    def aim(self, logits: Tensor, y: Tensor, randomness: ImageRandomness) -> tuple[Tensor, int]:
        """Labels (batch,), and whether the loss for them is to be raised (1) or lowered (-1)."""
        return y, 1

    def _gradient(
        self, model: nn.Module, point: Tensor, y: Tensor, randomness: ImageRandomness, place: tuple[int | Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """The gradient at `point` of what is raised, and the logits; `place` is for random gradients."""

        def objective(logits: Tensor) -> Tensor:
            labels, sign = self.aim(logits, y, randomness)
            return sign * self.loss(logits, labels)

        gradient, logits = input_gradient(model, point, objective)
        # A branch of the network that gives NaN can have a gradient of 0, which would look like robustness, too.
        return torch.where(usable(logits).view(-1, 1, 1, 1), gradient, torch.nan), logits

    def unit(self, batch_size: int) -> int:
        """One: no image depends on another."""
        return 1

    def run(self, model: nn.Module, x: Tensor, y: Tensor, randomness: ImageRandomness) -> Tensor:
        """The last iterate; of several restarts, per image the one with the largest cross-entropy."""

        def last(restart: int) -> Tensor:
            *_, state = self._iterate(model, x, y, randomness, restart)
            if restart == 0:
                self.blindness.add(state[BLIND])
            return state["x_adv"]

        restarts = (last(restart) for restart in range(self.schedule[2]))
        return self._best(model, y, randomness, restarts, BatchSize(device=x.device))

    def stream(self, model: nn.Module, batches: Iterator[ImageBatch], seed: int, size: BatchSize) -> Iterator[Tensor]:
        """As `run`, but images that are done leave the batch, and the next ones take their places."""
        inputs = tee(batches, self.schedule[2])
        runs = [self._run_in_full_batches(model, images, seed, size, n) for n, images in enumerate(inputs)]
        for restarts in zip(*runs, strict=True):
            batch = restarts[0][0]
            with frozen(model):
                randomness = ImageRandomness(seed, PURPOSE, batch.indices)
                best = self._best(model, batch.labels, randomness, (x_adv for _, x_adv in restarts), size)
            yield self.checked(best, batch.images)

    def _run_in_full_batches(
        self, model: nn.Module, batches: Iterator[ImageBatch], seed: int, size: BatchSize, restart: int
    ) -> Iterator[tuple[ImageBatch, Tensor]]:
        def step(x: Tensor, y: Tensor, randomness: ImageRandomness, state: State, taken: Tensor) -> Step:
            with frozen(model):
                return self._step(model, x, y, randomness, state, (restart, taken))

        def start(x: Tensor, randomness: ImageRandomness) -> State:
            return {**self.initial(x, randomness, restart), BLIND: x.new_zeros(len(x), dtype=torch.bool)}

        def left(state: State) -> None:
            if restart == 0:
                self.blindness.add(state[BLIND])

        return in_full_batches(batches, (seed, PURPOSE), start, step, self.schedule[0], size, left)

    def _best(
        self, model: nn.Module, y: Tensor, randomness: ImageRandomness, restarts: Iterator[Tensor], size: BatchSize
    ) -> Tensor:
        best = next(restarts)
        if self.schedule[2] == 1:
            return best

        def loss_of(x_adv: Tensor) -> Tensor:
            def work(start: int, stop: int) -> Tensor:
                logits, here = model(x_adv[start:stop]), slice(start, stop)
                labels, sign = self.aim(logits, y[here], replace(randomness, indices=randomness.indices[here]))
                return sign * cross_entropy(logits, labels, reduction="none")

            with torch.no_grad():
                return torch.cat([y.new_empty(0, dtype=x_adv.dtype), *in_batches(len(x_adv), work, size)])

        best_loss = loss_of(best)
        for x_adv in restarts:
            loss = loss_of(x_adv)
            better = ~(loss <= best_loss)  # so that an image whose loss is NaN is kept, for the caller to see
            best = torch.where(better.view(-1, 1, 1, 1), x_adv, best)
            best_loss = torch.where(better, loss, best_loss)
        return best


def blind_sentence(attacks: Sequence[GradientAttack]) -> str:
    """How many images gave attacks no gradient, in a sentence; empty if they are few."""
    shares = {attack.label: attack.blindness.share for attack in attacks}
    shown = ", ".join(f"{label}: {share:.1%}" for label, share in shares.items() if share >= _FEW)
    return shown and (
        f"images whose gradient was exactly zero and which could not be moved, as behind rounding, sign or a saturated "
        f"softmax ({shown}): they count as robust and may not be; try square, or scale the logits"
    )


@ATTACKS.register(
    "fgsm",
    summary="one step of size epsilon along the sign of the gradient, from a random start",
    source="Goodfellow et al. 2015; Eq. 3 of the paper with start=zero; random start as in its evaluation code",
    cost=1,
)
@dataclass(frozen=True, kw_only=True)
class FGSM(GradientAttack):
    """Fast gradient sign method: one step of size epsilon, projected to the ball; for L2 along the gradient itself."""

    name: ClassVar[str] = "fgsm"
    title: ClassVar[str] = "FGSM"

    @property
    def schedule(self) -> tuple[int, float, int]:
        """(1, epsilon, 1)."""
        return 1, self.epsilon, 1


@ATTACKS.register(
    "pgd",
    summary="projected gradient descent, 10 steps of 2/255 by default (pgd:50 for fifty); targeted with target=",
    source="Madry et al. 2018; Eq. 4 of the paper",
    cost=10,
)
@dataclass(frozen=True, kw_only=True)
class PGD(GradientAttack):
    """Projected gradient descent on the cross-entropy.

    A targeted attack lowers the loss for a target instead of raising that for the label, and by its rule an image moves
    until it is classified as its target.

    Args:
        iterations: number of steps T.
        step_size: for L∞ a fraction, 2/255 whatever the budget, as in the paper's evaluation; for L2 a length, without
            one 2.5 · epsilon / T, as Madry's group has it.
        restarts: independent runs; per image the one with the largest cross-entropy is kept (of a targeted attack the
            smallest, for the target).
        target: `none`, `next` (the class after the label), `random` (another class than the label, each image's own),
            or the number of a class, from 0, with images of that class itself aiming at the next one, since they would
            count as robust without having been attacked.
    """

    name: ClassVar[str] = "pgd"
    title: ClassVar[str] = "PGD"
    in_ball: ClassVar[tuple[str, ...]] = ("step_size",)

    iterations: int = 10
    step_size: float = cast(float, None)  # without a value: see `default`
    restarts: int = 1
    target: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if cast("float | None", self.step_size) is None:
            object.__setattr__(self, "step_size", self.default("step_size"))
        if self.target not in _TARGETS and not self.target.isdecimal():
            choices = ", ".join(_TARGETS)
            raise InputError(f"{self.name}: target '{self.target}' is none of {choices}, or the number of a class")
        for key in ("iterations", "restarts"):
            if getattr(self, key) < 1:
                raise InputError(f"{self.name}: {key} {getattr(self, key)}: must be at least 1")
        most = 1.0 if self.norm == "linf" else math.inf
        if not 0 < self.step_size <= most or self.step_size == math.inf:
            shown, limit = length(self.step_size, self.norm), " and at most 255/255" if self.norm == "linf" else ""
            raise InputError(f"{self.name}: step-size {shown}: must be above 0{limit}")

    def default(self, name: str) -> Any:
        """What the option is where nobody says otherwise."""
        if name != "step_size":
            return super().default(name)
        return 2 / 255 if self.norm == "linf" else (2.5 * self.epsilon / max(1, self.iterations) or 1.0)

    def aim(self, logits: Tensor, y: Tensor, randomness: ImageRandomness) -> tuple[Tensor, int]:
        """The targets, whose loss is lowered; without a target the labels.

        Raises:
            InputError: the target is no class of the model.
        """
        classes = logits.shape[1]
        if self.target == "none":
            return y, 1
        if self.target == "next":
            return (y + 1) % classes, -1
        if self.target == "random":
            others = (randomness.uniform((), _TARGET_DRAW) * (classes - 1)).long()
            return (y + 1 + others) % classes, -1
        if int(self.target) >= classes:
            raise InputError(f"{self.name}: target {self.target}: the model has classes 0 to {classes - 1}")
        return torch.where(y == int(self.target), (y + 1) % classes, int(self.target)), -1

    @property
    def schedule(self) -> tuple[int, float, int]:
        """(iterations, step size, restarts) as given."""
        return self.iterations, self.step_size, self.restarts


@ATTACKS.register(
    "cw",
    summary="PGD on the Carlini-Wagner margin, 20 steps of 2/255 by default",
    source="Carlini and Wagner 2017, its loss under PGD",
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
