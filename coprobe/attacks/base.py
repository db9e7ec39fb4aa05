"""What every attack has in common: a closed public call around a small open part, and the registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar, get_type_hints

import torch
from torch import Tensor, nn

from coprobe.attacks.ball import Ball
from coprobe.attacks.tally import Tally
from coprobe.core.engine import BatchSize, frozen, in_batches
from coprobe.core.randomness import ImageRandomness
from coprobe.core.registry import Registry
from coprobe.core.switches import ordinary, usual_torch
from coprobe.data.stream import ImageBatch
from coprobe.errors import InputError, NotFiniteError
from coprobe.models.classifier import owning_input

#: Every attack by the name that people write. Facts: `cost`, forward and backward passes per image.
ATTACKS: Registry[type[Attack]] = Registry("attack")

#: What the random numbers of all attacks are for, see `ImageRandomness`.
PURPOSE = "attack"

#: The fields that say where images may be moved to; they are no options of a spec.
_BALL = ("epsilon", "norm")
_BOOLEANS = {"true": True, "false": False}
#: The types that an option can have: how its text is read, and how errors call its values.
_KINDS: dict[type, tuple[Callable[[str], Any], str]] = {
    str: (str, "a word"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    bool: (lambda text: _BOOLEANS[text.lower()], "true or false"),
}


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """An L∞ or L2 attack on a classifier of images in [0, 1].

    Calling it checks its inputs, puts the model into evaluation mode, runs the subclass's `run`, and
    projects the result, so that no subclass can leave the ball. Modes, `requires_grad` and `.grad` of the
    model are as before afterwards, also after an exception.

    Args:
        epsilon: radius of the ball: for L∞ a fraction (16/255, not 16), for L2 a length, see `Ball`.
        norm: of the ball, `linf` or `l2`.

    Raises:
        InputError: an unknown norm, or a radius that can't be one.
    """

    epsilon: float
    norm: str = "linf"
    #: Fields of which people write n for n/255, and fields of which they do so for L∞.
    in_255ths: ClassVar[tuple[str, ...]] = ()
    in_ball: ClassVar[tuple[str, ...]] = ()
    name: ClassVar[str]
    title: ClassVar[str]
    #: Of what it computes: raise it when the images change, so that results which are kept are measured anew.
    version: ClassVar[int] = 1
    #: Whether it sees nothing of the model but its logits.
    black_box: ClassVar[bool] = False

    def __post_init__(self) -> None:
        Ball(self.epsilon, self.norm)

    @property
    def ball(self) -> Ball:
        """Where images may be moved to."""
        return Ball(self.epsilon, self.norm)

    @usual_torch()
    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        seed: int = 0,
        indices: Tensor | None = None,
        plain: bool = False,
    ) -> Tensor:
        """Adversarial images for `x`.

        Args:
            model: images to logits (batch, classes); normalisation is part of it.
            x: float images (batch, channels, height, width) in [0, 1].
            y: int64 labels (batch,).
            seed: of the random numbers, 0 or more.
            indices: int64 (batch,), where in the data set each image stands; None numbers them from 0. The random
                numbers of an image depend on the seed and on its index, whatever batch it is in.
            plain: take all images through all steps, also those that are done. The images are the same, see `batching`.

        Returns:
            A tensor like `x`, within `epsilon` of it and in [0, 1].

        Raises:
            InputError: shapes, types or ranges that are not as above.
            NotFiniteError: the model's gradients overflowed, so that the images are not finite.
        """
        batch, model = _checked_batch(x, y, seed, indices), owning_input(model)
        if plain or len(x) == 0:
            with frozen(model):
                randomness = ImageRandomness(seed, PURPOSE, batch.indices)
                return self.checked(self.run(model, batch.images, y, randomness).detach(), batch.images)
        (x_adv,) = self.stream(model, iter([batch]), seed, BatchSize(len(x), x.device))
        return x_adv

    def stream(self, model: nn.Module, batches: Iterator[ImageBatch], seed: int, size: BatchSize) -> Iterator[Tensor]:
        """Adversarial images of many batches, one after the other; between two of them the model is as before.

        What becomes of an image depends on the other images of its `unit` and on no others.

        Args:
            model: images to logits.
            batches: the images; an attack may look ahead of the batch that it yields.
            seed: of the random numbers.
            size: how many images at once; halved where memory runs out.

        Raises:
            RunError: as the call; memory ran out, see `BatchSize`.
        """
        for batch in batches:
            work = partial(self._run_part, model, batch, seed)
            yield self.checked(torch.cat(list(in_batches(len(batch), work, size))), batch.images)

    def unit(self, batch_size: int) -> int:
        """How many images, from a multiple of so many on, have to be attacked together: those of a batch."""
        return batch_size

    def _run_part(self, model: nn.Module, batch: ImageBatch, seed: int, first: int, stop: int) -> Tensor:
        part = batch.part(first, stop)
        with frozen(model):
            return self.run(model, part.images, part.labels, ImageRandomness(seed, PURPOSE, part.indices)).detach()

    def checked(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """`x_adv` within the ball around `x`; raises `NotFiniteError` if it is not finite."""
        if not x_adv.isfinite().all():
            raise NotFiniteError(
                f"{self.label}: the model's logits or gradients are not finite (NaN or infinite); "
                "check its weights and --mean/--std"
            )
        return self.ball.project(x_adv, x)

    @abstractmethod
    def run(self, model: nn.Module, x: Tensor, y: Tensor, randomness: ImageRandomness) -> Tensor:
        """Craft adversarial images, in the plain way; the model is frozen and the inputs are checked."""

    @property
    def tallies(self) -> list[Tally]:
        """What it counted of everything that this instance has attacked."""
        return []

    @property
    def identified(self) -> bool:
        """Whether it says what it is, so that results which depend on it can be kept and found again."""
        return True

    @property
    def label(self) -> str:
        """The name as a person reads it, for tables and figures ("PGD-50", "PGD-50 (restarts=10)")."""
        options = ", ".join(self.options)
        return f"{self.heading} ({options})" if options else self.heading

    @property
    def heading(self) -> str:
        """The label without its options: the title, and the number of iterations where that is a field ("PGD-50")."""
        return "-".join([self.title, *self._iterations])

    @property
    def spec(self) -> str:
        """The text from which `parse` makes this attack again, epsilon, norm and defaults aside ("pgd:50")."""
        return ":".join([self.name, *self._iterations, *self.options])

    @property
    def _iterations(self) -> list[str]:
        return [str(getattr(self, field.name)) for field in fields(self) if field.name == "iterations"]

    @property
    def options(self) -> list[str]:
        """What differs from the defaults, as `parse` reads it ("restarts=10"); the ball and iterations aside."""
        changed: list[str] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in (*_BALL, "iterations") and value != self.default(field.name):
                # 12 digits: `parse` gets the same float back, and 2/255 still reads as 2.
                shown = f"{value * 255:.12g}" if self.counts_255ths(field.name, self.norm) else value
                changed.append(f"{field.name.replace('_', '-')}={shown}")
        return changed

    def default(self, name: str) -> Any:
        """What the option is where nobody says otherwise."""
        return next(field.default for field in fields(self) if field.name == name)

    @classmethod
    def counts_255ths(cls, name: str, norm: str) -> bool:
        """Whether people write n for n/255 of an option."""
        return name in cls.in_255ths or (norm == "linf" and name in cls.in_ball)


class StepAttack(Attack):
    """An attack that can hand out its iterates."""

    @abstractmethod
    def iterate(self, model: nn.Module, x: Tensor, y: Tensor, randomness: ImageRandomness) -> Iterator[Tensor]:
        """Yield the start x_0 and then x_1 … x_T; no context may stay open over a yield."""

    def steps(
        self, model: nn.Module, x: Tensor, y: Tensor, *, seed: int = 0, indices: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Yield x_0 (the start), x_1, …, x_T of one run (restarts aside), each like `x`.

        Between two steps the model is as it was before; arguments and errors are those of the call.
        """
        batch = _checked_batch(x, y, seed, indices)
        return self._projected(owning_input(model), batch.images, y, ImageRandomness(seed, PURPOSE, batch.indices))

    def _projected(self, model: nn.Module, x: Tensor, y: Tensor, randomness: ImageRandomness) -> Iterator[Tensor]:
        iterates = self.iterate(model, x, y, randomness)
        while True:
            with usual_torch(), frozen(model):
                x_t = next(iterates, None)
            if x_t is None:
                return
            yield self.ball.project(x_t.detach(), x)


def check_images(x: Tensor, y: Tensor) -> None:
    """Raise `InputError` unless `x` are float images in [0, 1] and `y` as many int64 labels."""
    if x.dim() != 4 or not x.is_floating_point():
        raise InputError(f"images must be a float tensor N×C×H×W, not {x.dtype} {tuple(x.shape)}")
    if y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise InputError(f"labels must be {len(x)} int64 numbers, not {y.dtype} {tuple(y.shape)}")
    if x.numel():
        low, high = x.aminmax()  # one pass; NaN fails the comparison below
        if not torch.logical_and(low >= 0, high <= 1):
            raise InputError(
                "images must lie in [0, 1]; normalisation belongs to the model (Classifier), not to the data"
            )


def _checked_batch(x: Tensor, y: Tensor, seed: int, indices: Tensor | None) -> ImageBatch:
    check_images(x, y)
    if seed < 0:
        raise InputError(f"seed {seed}: must be at least 0")
    if indices is None:
        indices = torch.arange(len(x), device=x.device)
    if indices.shape != x.shape[:1] or indices.dtype != torch.int64:
        raise InputError(f"indices must be {len(x)} int64 numbers, not {indices.dtype} {tuple(indices.shape)}")
    return ImageBatch(ordinary(x), ordinary(y), indices.to(x.device))


def parse(spec: str, epsilon: float, norm: str = "linf") -> Attack:
    """The attack that `spec` describes, in the ball of radius `epsilon` (see `Ball`).

    `NAME[:ITERATIONS][:option=value…]`, for example `fgsm`, `fgsm:start=zero`, `pgd:50`,
    `pgd:50:restarts=10:step-size=4`; step sizes are n of n/255 for L∞, and lengths for L2. A name may itself have two
    parts (`aa:fast`).

    Raises:
        InputError: unknown attack or option (the nearest names are offered), or a wrong value.
    """
    name, *options = spec.split(":")
    if options and f"{name}:{options[0]}" in ATTACKS:
        name, options = f"{name}:{options[0]}", options[1:]
    attack = ATTACKS[name]
    hints = get_type_hints(attack)
    kinds = {field.name: hints[field.name] for field in fields(attack) if field.name not in _BALL}
    given: dict[str, Any] = {}
    for option in options:
        key, _, text = option.partition("=") if "=" in option else ("iterations", "=", option)
        shown, key = key, key.replace("-", "_")
        if key not in kinds:
            variants = [known.removeprefix(f"{name}:") for known in ATTACKS if known.startswith(f"{name}:")]
            choices = ", ".join([*variants, *(k.replace("_", "-") for k in kinds)]) or "no options"
            raise InputError(f"attack '{spec}': '{option}' is no option of {name}; it takes {choices}")
        if key in given:
            raise InputError(f"attack '{spec}': {shown} is given twice; keep one")
        read, values = _KINDS[kinds[key]]
        try:
            value = read(text)
        except (ValueError, KeyError):
            raise InputError(f"attack '{spec}': {shown} takes {values}, not '{text}'") from None
        given[key] = value / 255 if attack.counts_255ths(key, norm) else value
    return attack(epsilon=epsilon, norm=norm, **given)
