"""What every training method has in common, and the registry."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from coprobe.attacks import project
from coprobe.core.registry import Registry
from coprobe.data import Batch
from coprobe.errors import InputError
from coprobe.training.memory import Memory
from coprobe.training.update import AdversarialInputs, Pass, TrainingContext, UpdateState, uniform

#: Every training method by name. Facts: `cost`, the work of an epoch relative to FGSM's with the method's defaults. A
#: forward pass and a backward pass to the images count 1 each, a backward pass to the weights as well 2: FGSM has 5.
METHODS: Registry[type[Method]] = Registry("training method")

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(kw_only=True)
class Method(ABC):
    """A training method: how images are perturbed, and the loss of the update.

    Every further field of a subclass is an option, of the type int, float, bool, str or a Literal of words (or None).

    Args:
        epsilon: radius of the perturbation, a fraction.
        step_size: of the attack, a fraction; None takes `default_step` × epsilon.

    Attributes:
        kept: what must outlast an update, by name: tensors, and memories of the images. An interrupted run gets
            it back; a method keeps no state anywhere else.
        context: of the run.
    """

    epsilon: float
    step_size: float | None = None
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
    context: TrainingContext = field(init=False, repr=False)

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

    def prepare(self, context: TrainingContext) -> None:
        """Called once, before the first epoch; raises `InputError` for a context that the method can't work in."""
        self.context = context

    def begin_epoch(self, epoch: int, generator: torch.Generator) -> None:  # noqa: B027 (most need none)
        """Make or reset what is kept.

        Called before every epoch (from 0), but not again when a run is resumed in the middle of one.

        Args:
            epoch: from 0.
            generator: of this epoch's random numbers, on the device.
        """

    @abstractmethod
    def perturb(self, update: UpdateState) -> AdversarialInputs:
        """The images to train on; the model is in training mode and must be left so."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The classification loss (scalar, mean over the batch) of attack and update."""
        return cross_entropy(logits, labels)

    def objective(self, update: UpdateState, inputs: AdversarialInputs, final: Pass) -> Tensor:
        """What the update lowers, regularizers aside (scalar); may make passes of its own and add to `measured`.

        Args:
            update: where in the run it is.
            inputs: what `perturb` returned.
            final: the update's pass at x + δ, or at its noisy version where Eqs. 11 and 12 are asked for.
        """
        return self.loss(final.logits, update.batch.labels)

    def after_backward(self, update: UpdateState, inputs: AdversarialInputs) -> None:  # noqa: B027 (most need none)
        """Called between the update's backward pass and the optimizer's step."""

    def tensor(self, name: str) -> Tensor:
        """The tensor that is kept under this name."""
        tensor = self.kept[name]
        assert isinstance(tensor, Tensor)
        return tensor

    def memory(self, name: str) -> Memory:
        """The memory of the images that is kept under this name."""
        memory = self.kept[name]
        assert isinstance(memory, Memory)
        return memory

    def remember(self, rows: Tensor) -> Memory:
        """A memory of every training image, with these values (images, …) to begin with."""
        return Memory(rows, self.context.memory_dtype, self.context.processes)

    def state(self) -> dict[str, Any]:
        """`kept` as plain tensors, for `load`."""
        return {
            name: {"rows": value.gather()} if isinstance(value, Memory) else value for name, value in self.kept.items()
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        device = self.context.device
        self.kept = {
            name: value.to(device) if isinstance(value, Tensor) else self.remember(value["rows"].to(device))
            for name, value in state.items()
        }


class SingleStep(Method):
    """δ from one gradient at x + δ0; subclasses say where δ0 comes from and what becomes of the gradient.

    The gradient is taken in training mode, so batch-norm statistics are those of the batch and the running
    ones are updated twice per step, as in the public code of these methods.
    """

    @abstractmethod
    def start(self, update: UpdateState) -> Tensor:
        """δ0, like the images."""

    def step(self, delta: Tensor, gradient: Tensor, batch: Batch) -> Tensor:
        """X + δ from δ0 and the gradient there: one sign step, projected to the ball and to [0, 1]."""
        return project(batch.images + delta + self.alpha * gradient.sign(), batch.images, self.epsilon)

    def perturb(self, update: UpdateState) -> AdversarialInputs:
        """One pass at x + δ0, its gradient with respect to the images, and `step`."""
        batch, delta = update.batch, self.start(update)
        start = update.forward(batch.images + delta)
        gradient = update.input_gradient(start, self.loss(start.logits, batch.labels))
        return AdversarialInputs(self.step(delta, gradient, batch), start, gradient)


def soft_cross_entropy(logits: Tensor, labels: Tensor, factor: float) -> Tensor:
    """Cross-entropy (scalar, mean over the batch) with `factor` on the true class, the rest spread over the others."""
    classes = logits.shape[1]
    return cross_entropy(logits, labels, label_smoothing=(1 - factor) * classes / (classes - 1))


def random_start(update: UpdateState, radius: float) -> Tensor:
    """δ0 ~ U(±radius), like the images, such that x + δ0 stays in [0, 1]."""
    x = update.batch.images
    return (x + radius * uniform(update.batch, update.generator)).clamp_(0, 1) - x


def check_range(option: str, value: float, low: float, high: float = math.inf, *, above: bool = False) -> None:
    """Raise `InputError` unless an option of a method lies in [low, high], or in (low, high] with `above`."""
    if not low <= value <= high or (above and value == low):
        least = f"{'above' if above else 'at least'} {low:g}"
        bounds = least if high == math.inf else f"{least} and at most {high:g}"
        raise InputError(f"option {option} must be {bounds}, not {value:g}")


def _read(value: Any, kind: Any) -> Any:
    """The value of an option, perhaps given as text, in its field's type; raises `ValueError` with what it takes."""
    if type(None) in get_args(kind):
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        if str(value) not in get_args(kind):
            raise ValueError(f"one of {', '.join(get_args(kind))}")
        return str(value)
    if kind is str:
        return str(value)
    if kind is bool:
        if str(value).lower() not in _BOOLEANS:
            raise ValueError("true or false")
        return _BOOLEANS[str(value).lower()]
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or (kind is int and not number.is_integer()):
        raise ValueError("a whole number" if kind is int else "a number")
    return kind(number)


def make_method(name: str, options: Mapping[str, Any], **common: Any) -> Method:
    """The method called `name`, with its own `options` (as text, or as what they are).

    Raises:
        InputError: unknown method or option, or an option that its type doesn't allow or that is out of range.
    """
    method = METHODS[name]
    shared = {f.name for f in fields(Method)}
    own = [f.name for f in fields(method) if f.name not in shared and f.init]
    kinds = get_type_hints(method)
    given: dict[str, Any] = {}
    for option, value in options.items():
        key = option.replace("-", "_")
        if key not in own:
            raise InputError(f"method {name} has no option '{key}'; its options: {', '.join(own) or 'none'}")
        try:
            given[key] = _read(value, kinds[key])
        except ValueError as error:
            raise InputError(f"method {name}: option {key} takes {error}, not '{value}'") from None
    try:
        return method(**common, **given)
    except InputError as error:
        raise InputError(f"method {name}: {error}") from None
