"""What every training method has in common, and the registry."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from coprobe.attacks import project
from coprobe.core.randomness import generator_for
from coprobe.core.registry import Registry
from coprobe.data import Batch
from coprobe.errors import InputError
from coprobe.training.memory import Memory
from coprobe.training.step import Pass, Perturbed, Setting, Step, uniform

#: Every training method by name. Facts: `cost`, the work of an epoch relative to FGSM's with the method's defaults. A
#: forward pass and a backward pass to the images count 1 each, a backward pass to the weights as well 2: FGSM has 5.
METHODS: Registry[type[Method]] = Registry("training method")


@dataclass(kw_only=True)
class Method(ABC):
    """A training method: how images are perturbed, and the loss of the update.

    Args:
        epsilon: radius of the perturbation, a fraction.
        step_size: of the attack, a fraction; None takes `default_step` × epsilon.
        seed: of the method's own randomness.

    Attributes:
        kept: what must outlast an update, by name: tensors, and memories of the images. An interrupted run gets
            it back; a method keeps no state anywhere else.
        generator: of this update's random numbers; a new one for every update, on the device.
        setting: of the run.
        observe: makes the `start` of a `Perturbed` from the logits of the pass at x + δ0; to be called right after
            that pass, when the activations seen last are those of it.
    """

    epsilon: float
    step_size: float | None = None
    seed: int = 0
    default_step: ClassVar[float] = 1.0
    default_logit_weight: ClassVar[float] = 0.0
    #: Whether there is an attack, whose pass at x + δ0 the regularizers compare with.
    attacks: ClassVar[bool] = True
    #: Whether x + δ stays within epsilon of x.
    bounded: ClassVar[bool] = True
    #: Whether x + δ stays in [0, 1].
    clamped: ClassVar[bool] = True
    #: Whether torch.compile can take its passes (it knows no second derivatives).
    compiles: ClassVar[bool] = True
    kept: dict[str, Tensor | Memory] = field(init=False, repr=False, default_factory=dict)
    generator: torch.Generator = field(init=False, repr=False)
    setting: Setting = field(init=False, repr=False)
    observe: Callable[[Tensor], Pass] = field(init=False, repr=False, default_factory=lambda: _unobserved)

    def __post_init__(self) -> None:  # noqa: B027 (some have none)
        """Check the options; raises `InputError` for one out of range."""

    @property
    def alpha(self) -> float:
        """The step size in force, a fraction."""
        return self.default_step * self.epsilon if self.step_size is None else self.step_size

    @property
    def updates_per_batch(self) -> int:
        """How often each batch is used in a row."""
        return 1

    @property
    def keeps_graph(self) -> bool:
        """Whether `objective` takes the pass at x + δ0 with its graph."""
        return False

    def prepare(self, setting: Setting) -> None:
        """Called once, before the first epoch; raises `InputError` for a setting that the method can't work in."""
        self.setting = setting

    def begin_epoch(self, epoch: int) -> None:
        """Called before every epoch (from 0); extend it to make or reset what is kept."""
        self.generator = generator_for(self.seed, "memory", epoch, device=self.setting.device)

    def begin_step(self, epoch: int, number: int) -> None:
        """Called before every update with its number in the epoch, both from 0."""
        self.generator = generator_for(self.seed, "perturbation", epoch, number, device=self.setting.device)

    @abstractmethod
    def perturb(self, model: nn.Module, batch: Batch, *, keep_graph: bool) -> Perturbed:
        """The images to train on; the model is in training mode and must be left so.

        Args:
            model: images to logits.
            batch: images in [0, 1], labels, indices into the data set.
            keep_graph: keep the graph of the pass at x + δ0, because a regulariser reads it.
        """

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The classification loss (scalar, mean over the batch) of attack and update."""
        return cross_entropy(logits, labels)

    def objective(self, step: Step) -> Tensor:
        """What the update lowers, regularizers aside (scalar); may make passes of its own and add to `measured`."""
        return self.loss(step.final.logits, step.batch.labels)

    def after_backward(self, step: Step) -> None:  # noqa: B027 (most methods need none)
        """Called between the update's backward pass and the optimizer's step."""

    def memory(self, name: str) -> Memory:
        """The memory of the images that is kept under this name."""
        memory = self.kept[name]
        assert isinstance(memory, Memory)
        return memory

    def remember(self, rows: Tensor) -> Memory:
        """A memory of every training image, with these values (images, …) to begin with."""
        return Memory(rows, self.setting.memory_dtype, self.setting.processes)

    def state(self) -> dict[str, Any]:
        """`kept` as plain tensors, for `load`."""
        return {
            name: {"rows": value.gather()} if isinstance(value, Memory) else value for name, value in self.kept.items()
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        device = self.setting.device
        self.kept = {
            name: value.to(device) if isinstance(value, Tensor) else self.remember(value["rows"].to(device))
            for name, value in state.items()
        }


def _unobserved(logits: Tensor) -> Pass:
    return Pass(logits, {})


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
        start = self.observe(logits)
        # The gradient of the mean over the whole batch, of which this process may have but a part.
        loss = self.loss(logits, batch.labels) * batch.fraction
        (gradient,) = torch.autograd.grad(loss, delta, retain_graph=keep_graph)
        return Perturbed(self.step(delta.detach(), gradient, batch), start, gradient)


def soft_cross_entropy(logits: Tensor, labels: Tensor, factor: float) -> Tensor:
    """Cross-entropy (scalar, mean over the batch) with `factor` on the true class, the rest spread over the others."""
    classes = logits.shape[1]
    return cross_entropy(logits, labels, label_smoothing=(1 - factor) * classes / (classes - 1))


def random_start(batch: Batch, radius: float, generator: torch.Generator) -> Tensor:
    """δ0 ~ U(±radius), like the images, such that x + δ0 stays in [0, 1]."""
    x = batch.images
    return (x + radius * uniform(batch, generator)).clamp_(0, 1) - x


def _number(method: str, option: str, value: Any, *, whole: bool) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or (whole and number != int(number)):
        kind = "whole number" if whole else "number"
        raise InputError(f"method {method}: option {option} takes a {kind}, not '{value}'")
    return int(number) if whole else number


def check_range(option: str, value: float, low: float, high: float = math.inf, *, above: bool = False) -> None:
    """Raise `InputError` unless an option of a method lies in [low, high], or in (low, high] with `above`."""
    if not low <= value <= high or (above and value == low):
        least = f"{'above' if above else 'at least'} {low:g}"
        bounds = least if high == math.inf else f"{least} and at most {high:g}"
        raise InputError(f"option {option} must be {bounds}, not {value:g}")


def make_method(name: str, options: Mapping[str, Any], **common: Any) -> Method:
    """The method called `name`, with its own `options` (numbers as text or as numbers).

    Raises:
        InputError: unknown method or option, or an option that is no number or out of range.
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
        given[key] = _number(name, key, value, whole=own[key].type == "int")
    try:
        return method(**common, **given)
    except InputError as error:
        raise InputError(f"method {name}: {error}") from None
