"""Attacks of people's own, beside the registered ones: any callable, named, seeded, and checked."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from coprobe.attacks.ball import Ball, length
from coprobe.attacks.base import ATTACKS, PURPOSE, Attack, parse
from coprobe.attacks.tally import Tally
from coprobe.core.randomness import ImageRandomness, key_of, seeded
from coprobe.core.state import evaluating
from coprobe.errors import InputError, RunError

#: What is taken wherever an attack is asked for: a spec, an `Attack`, what `own` gives, or a callable (see `own`).
AnyAttack: TypeAlias = "str | Attack | Own | Callable[..., Any]"

_BY_NAME = inspect.Parameter.KEYWORD_ONLY

#: How far an image may lie outside the ball or [0, 1] by rounding.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Own:
    """A callable as an attack; see `own`."""

    attack: Any
    name: str
    identity: str = ""


def own(attack: Any, name: str = "", identity: str = "") -> Own:
    """Name an attack that is not coprobe's. Wherever a spec is taken, so is this, and so is the callable alone.

    Args:
        attack: called as `attack(model, x, y)`, or, if it takes two arguments as those of torchattacks do, which are
            made with their model, as `attack(x, y)`; then it attacks whatever model it was made with. It gives images
            like `x`. A foolbox attack gets the model, the images and the probe's epsilon in foolbox's manner; an object
            with a method `generate` (ART) gets arrays.
        name: in tables; its own name if empty.
        identity: everything that its images depend on, in words (name, version, settings). Results are kept only with
            it, since nothing else tells two callables apart.

    Example:
        >>> probe.evaluate([own(lambda model, x, y: x.flip(3), "mirror")])
    """
    return Own(attack, name or _name_of(attack), identity)


def as_attack(given: AnyAttack, ball: Ball) -> Attack:
    """The attack that is meant, in this ball.

    Raises:
        InputError: an unknown spec, an `Attack` in another ball, or something that can't be called.
    """
    if isinstance(given, str):
        return parse(given, ball.epsilon, ball.norm)
    if isinstance(given, Attack):
        if given.ball != ball:
            raise InputError(
                f"{given.label} attacks in the ball of {given.ball}, and the probe in that of {ball}; "
                "make the probe with the same epsilon and norm"
            )
        return replace(given)
    if not isinstance(given, Own):
        given = own(given)
    name = given.name
    if name.partition(":")[0] in (*ATTACKS, "clean"):
        name = f"own {name}"
    return OwnAttack(epsilon=ball.epsilon, norm=ball.norm, attack=given.attack, called=name, identity=given.identity)


class Escape(Tally):
    """How many images lie outside the ball, and by how much the furthest.

    Attributes:
        images: all of them.
        outside: those beyond the radius.
        largest: excess, in units of images in [0, 1].
    """

    def __init__(self) -> None:
        self.images = self.outside = 0
        self.largest = 0.0

    def add(self, excess: Tensor) -> None:
        """Add images, (batch,): by how much each is beyond the radius."""
        self.images += len(excess)
        self.outside += int((excess > TOLERANCE).sum())
        self.largest = max(self.largest, float(excess.max()) if len(excess) else 0.0)

    @property
    def state(self) -> tuple[int, int, float]:
        """Images, those outside, and the largest excess."""
        return self.images, self.outside, self.largest

    def merge_state(self, state: tuple[int, int, float]) -> None:
        """Add those of another process."""
        self.processes += 1
        self.images, self.outside = self.images + state[0], self.outside + state[1]
        self.largest = max(self.largest, state[2])


@dataclass(frozen=True, kw_only=True, eq=False)
class OwnAttack(Attack):
    """Somebody's callable, with torch's, numpy's and Python's generators seeded for each batch.

    What it gives is not moved into the ball, but counted in `escape`.

    Raises:
        InputError: it can't be called, changes the network's weights or hooks, gives something else than images like
            those it was given, or pixels outside [0, 1].
        RunError: its images are not finite.
    """

    name: ClassVar[str] = "own"
    title: ClassVar[str] = "own"

    attack: Any
    called: str
    identity: str = ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OwnAttack) and self.attack is other.attack and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[Any, ...]:
        return self.called, self.identity, self.ball

    @cached_property
    def escape(self) -> Escape:
        """What lay outside the ball."""
        return Escape()

    @property
    def tallies(self) -> list[Tally]:
        """`escape`."""
        return [self.escape]

    @property
    def identified(self) -> bool:
        """Whether an identity was given."""
        return bool(self.identity)

    @property
    def label(self) -> str:
        """As it is called."""
        return self.called

    @property
    def spec(self) -> str:
        """As it is called; `parse` can't make it."""
        return self.called

    def run(self, model: nn.Module, x: Tensor, y: Tensor, randomness: ImageRandomness) -> Tensor:
        """Call it on copies of the images."""
        first, before = int(randomness.indices[0]) if len(x) else 0, _fingerprint(model)
        with ExitStack() as block:
            for network in _networks_of(self.attack):
                block.enter_context(evaluating(network))  # which it may share with `model`, and leave in another mode
            block.enter_context(seeded(key_of(randomness.seed, PURPOSE, first), x.device))
            block.enter_context(torch.enable_grad())
            x_adv = _caller(self.attack)(model, x.clone(), y.clone(), self.epsilon)
        if _fingerprint(model) != before:
            raise InputError(
                f"attack '{self.called}' changes weights or hooks of the network, so that nothing after it would be of "
                "this network; let it work on a copy.deepcopy of the model, and make the probe anew"
            )
        if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape:
            shape = f"a tensor {tuple(x_adv.shape)}" if isinstance(x_adv, Tensor) else f"a {type(x_adv).__name__}"
            raise InputError(f"attack '{self.called}' gives {shape} for images {tuple(x.shape)}; it has to give images")
        return x_adv.detach().to(x)

    def checked(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """`x_adv` as it is but for rounding, and counted where it is outside the ball."""
        if not x_adv.isfinite().all():
            raise RunError(f"attack '{self.called}' gives images that are not finite (NaN or infinite)")
        if x_adv.numel():
            low, high = (float(end) for end in x_adv.aminmax())
            if low < -TOLERANCE or high > 1 + TOLERANCE:
                raise InputError(
                    f"attack '{self.called}' gives pixels from {low:g} to {high:g}; images lie in [0, 1]: clamp them, "
                    "and leave normalisation to the model"
                )
        self.escape.add(self.ball.excess(x_adv, x))
        return x_adv.clamp(0, 1)

    @property
    def warning(self) -> str:
        """What lay outside the ball, in a sentence; empty if nothing did."""
        escape = self.escape
        if not escape.outside:
            return ""
        return (
            f"{self.called}: {escape.outside} of {escape.images} images lie outside the ball of {self.ball}, by up to "
            f"{length(escape.largest, self.norm)}; what is measured on them is of a larger budget"
        )


def _networks_of(attack: Any) -> list[nn.Module]:
    """The networks that an attack was made with: attributes of its own, or of what it calls its estimator (ART)."""
    holders = [attack, getattr(attack, "estimator", None)]
    held = [value for one in holders if hasattr(one, "__dict__") for value in vars(one).values()]
    return [value for value in held if isinstance(value, nn.Module)]


def _fingerprint(model: nn.Module) -> list[Any]:
    """What differs once weights are written to or replaced, or hooks are added or left behind."""
    weights = [(id(w), 0 if w.is_inference() else w._version) for w in model.parameters()]
    hooks = [(*m._forward_hooks, *m._forward_pre_hooks, *m._backward_hooks) for m in model.modules()]
    return [weights, hooks]


def _name_of(attack: Any) -> str:
    while isinstance(attack, functools.partial):
        attack = attack.func
    named = getattr(attack, "__name__", "")
    if inspect.ismethod(attack):
        return f"{type(attack.__self__).__name__}.{named}"
    if named:
        return "own attack" if named == "<lambda>" else named
    kind = type(attack)
    return f"{kind.__module__.partition('.')[0]}.{kind.__name__}"


def _caller(attack: Any) -> Callable[[nn.Module, Tensor, Tensor, float], Any]:
    """How an attack is called, by its signature."""
    if not callable(attack):
        if callable(generate := getattr(attack, "generate", None)):
            return lambda model, x, y, epsilon: torch.as_tensor(generate(x=x.cpu().numpy(), y=y.cpu().numpy()))
        raise InputError(f"attack {attack!r}: give a spec, or something that is called as attack(model, x, y)")
    try:
        parameters = [*inspect.signature(attack).parameters.values()]
    except (TypeError, ValueError):  # of code that is not Python
        return lambda model, x, y, epsilon: attack(model, x, y)
    if any(one.name == "epsilons" and one.kind is one.KEYWORD_ONLY for one in parameters):
        return lambda model, x, y, epsilon: _by_foolbox(attack, model, x, y, epsilon)
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    places = [one for one in parameters if one.kind in by_place]
    needed = [one for one in parameters if one.default is one.empty and one.kind in (*by_place, _BY_NAME)]
    if len(needed) > 3 or any(one.kind is _BY_NAME for one in needed):
        more = ", ".join(one.name for one in needed if one not in places[:3])
        raise InputError(f"attack {_name_of(attack)} also needs {more}; bind it with functools.partial or a lambda")
    has_model = bool(places) and places[0].name in ("model", "net", "network", "classifier")
    every = any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in parameters)
    if has_model or len(needed) == 3 or (every and not needed):
        return lambda model, x, y, epsilon: attack(model, x, y)
    return lambda model, x, y, epsilon: attack(x, y)


def _by_foolbox(attack: Any, model: nn.Module, x: Tensor, y: Tensor, epsilon: float) -> Any:
    import foolbox

    return attack(foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device=x.device), x, y, epsilons=epsilon)[1]
