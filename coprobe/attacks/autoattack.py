"""AutoAttack and its members, run by the authors' own code (pyautoattack)."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice, pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from coprobe.attacks.base import ATTACKS, PURPOSE, Attack
from coprobe.attacks.stages import Stage, Stages
from coprobe.attacks.tally import Tally
from coprobe.core.engine import BatchSize, frozen
from coprobe.core.randomness import ImageRandomness, key_of
from coprobe.data.stream import ImageBatch
from coprobe.errors import InputError, unknown

#: The members of the standard version in its order, cheap to dear.
MEMBERS = ("apgd-ce", "apgd-t", "fab-t", "square")

#: So many batches go through the members together, so that what one member leaves are fuller batches for the
#: next. With more of them, a data set would have fewer shares for several processes.
TOGETHER = 4

#: Norms as pyautoattack calls them.
_NORMS = {"linf": "Linf", "l2": "L2"}

_SOURCE = "Croce and Hein 2020"
_STANDARD = "+".join(MEMBERS)


@dataclass(frozen=True, kw_only=True)
class AutoAttack(Attack):
    """Members of AutoAttack by the package pyautoattack, seeded by the seed and the index of the first image.

    They run one after the other, each only on the images that are still classified correctly. Of many batches these are
    gathered from `TOGETHER` at a time. Images that the model misclassifies anyway, and those that
    no member breaks, come back as they are.

    Raises:
        InputError: images other than float32, or fewer than four classes for APGD-T, whose loss needs four.
    """

    @cached_property
    def stages(self) -> Stages:
        """What each member did, summed over everything that this instance has attacked."""
        return Stages()

    @property
    def tallies(self) -> list[Tally]:
        """`stages`."""
        return [self.stages]

    @property
    def sequence(self) -> tuple[str, ...]:
        """The members in the order in which they run; a member alone is its own only one."""
        return (self.name,)

    def unit(self, batch_size: int) -> int:
        """`TOGETHER` batches."""
        return TOGETHER * batch_size

    def stream(self, model: nn.Module, batches: Iterator[ImageBatch], seed: int, size: BatchSize) -> Iterator[Tensor]:
        """Adversarial images batch by batch; the members get a unit of images, in batches of `size`.

        Where memory runs out, all of the unit begins anew in batches of half the size.

        Raises:
            InputError, RunError: as the call; memory ran out, see `BatchSize`.
        """
        while together := list(islice(batches, TOGETHER)):
            x, y, indices = (
                torch.cat(parts)
                for parts in zip(*((batch.images, batch.labels, batch.indices) for batch in together), strict=True)
            )
            randomness = ImageRandomness(seed, PURPOSE, indices)
            done = None
            while done is None:
                count = min(size.now, len(x))
                done = size.attempt(count, partial(self._frozen, model, x, y, randomness, count))
            yield from self.checked(done[0], x).split([len(batch) for batch in together])

    def run(self, model: nn.Module, x: Tensor, y: Tensor, randomness: ImageRandomness) -> Tensor:
        """Attack all of them in one batch."""
        return self._attacked(model, x, y, randomness, len(x))

    def _frozen(self, model: nn.Module, x: Tensor, y: Tensor, randomness: ImageRandomness, batch_size: int) -> Tensor:
        with frozen(model):
            return self._attacked(model, x, y, randomness, batch_size).detach()

    def _attacked(self, model: nn.Module, x: Tensor, y: Tensor, randomness: ImageRandomness, batch_size: int) -> Tensor:
        """Hand the images to pyautoattack, and note how many each member is given, and when it begins."""
        import pyautoattack

        if len(x) == 0:
            return x
        if x.dtype != torch.float32:
            raise InputError(
                f"{self.label} computes in float32, and the images are {x.dtype}; convert model and images"
            )
        with torch.no_grad():
            classes = model(x[:1]).shape[1]
        if classes < 4 and "apgd-t" in self.sequence:
            raise InputError(f"{self.label} needs at least 4 classes, and this model has {classes}; use pgd or cw")
        seed = key_of(randomness.seed, randomness.purpose, int(randomness.indices[0]))
        adversary = pyautoattack.AutoAttack(model, norm=_NORMS[self.norm], eps=self.epsilon, seed=seed, device=x.device)
        adversary.attacks_to_run = list(self.sequence)
        adversary.apgd_targeted.n_target_classes = min(9, classes - 1)
        adversary.fab.n_target_classes = min(9, classes - 1)
        given = Counter[str]()
        begun: dict[str, float] = {}

        def noted(member: str, perturb: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def begin(x: Tensor, y: Tensor) -> Tensor:
                given[member] += len(x)
                begun.setdefault(member, time.perf_counter())
                return perturb(x, y)

            return begin

        runners = (adversary.apgd, adversary.apgd_targeted, adversary.fab, adversary.square)
        for member, runner in zip(MEMBERS, runners, strict=True):
            runner.perturb = noted(member, runner.perturb)
        with _globals_kept():
            # it views images as rows, which a channels-last layout can't be
            x_adv, predicted = adversary.run_standard_evaluation(x.contiguous(), y, batch_size=batch_size)
        # Before each member the package counts what is left, and so waits for the device.
        ends = [*begun.values(), time.perf_counter()]
        left = [*given.values(), int((predicted == y).sum())]
        stages = {member: Stage() for member in self.sequence}
        for member, (begin, end), (images, rest) in zip(begun, pairwise(ends), pairwise(left), strict=True):
            stages[member] = Stage(images, images - rest, end - begin)
        self.stages.add(len(x), stages)
        return x_adv


@contextmanager
def _globals_kept() -> Iterator[None]:
    """Undo what pyautoattack does to the process: it seeds every generator and drops the debugger's trace function."""
    trace = sys.gettrace()
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(cuda):
        try:
            yield
        finally:
            sys.settrace(trace)


def stages_of(attacks: Iterable[Attack]) -> list[dict[str, Any]]:
    """The rows of `Stages.rows`, with the spec as `attack`, of those attacks that have several members."""
    return [
        {"attack": attack.spec, **row}
        for attack in attacks
        if isinstance(attack, AutoAttack) and len(attack.sequence) > 1
        for row in attack.stages.rows()
    ]


@ATTACKS.register(
    "aa",
    summary="AutoAttack, standard version: APGD-CE, APGD-T, FAB-T and Square, each on what is left",
    source=_SOURCE,
    cost=7800,
)
@dataclass(frozen=True, kw_only=True)
class AA(AutoAttack):
    """AutoAttack, the standard version unless only some of its members are asked for.

    Args:
        members: their names with + between them, in any order; they run cheap to dear.

    Raises:
        InputError: a member that is unknown or named twice.
    """

    name: ClassVar[str] = "aa"
    title: ClassVar[str] = "AA"

    members: str = _STANDARD

    def __post_init__(self) -> None:
        super().__post_init__()
        named = self.members.split("+")
        for member in named:
            if member not in MEMBERS:
                raise unknown("member of AutoAttack", member, MEMBERS)
            if named.count(member) > 1:
                raise InputError(f"{self.name}: the member {member} is named twice; keep one")
        object.__setattr__(self, "members", "+".join(sorted(named, key=MEMBERS.index)))

    @property
    def sequence(self) -> tuple[str, ...]:
        """The members that were asked for."""
        return tuple(self.members.split("+"))

    @property
    def label(self) -> str:
        """The title alone for the standard version, else with the members ("AA (APGD-CE + Square)")."""
        titles = " + ".join(ATTACKS[member].title for member in self.sequence)
        return self.title if self.members == _STANDARD else f"{self.title} ({titles})"


@ATTACKS.register(
    "aa:fast",
    summary="APGD-CE, then APGD-T on what is left; not AutoAttack, which would go on with FAB-T and Square",
    source=_SOURCE,
    cost=1000,
)
@dataclass(frozen=True, kw_only=True)
class AAFast(AutoAttack):
    """The first two members of AutoAttack, an eighth of its passes."""

    name: ClassVar[str] = "aa:fast"
    title: ClassVar[str] = "AA-fast"

    @property
    def sequence(self) -> tuple[str, ...]:
        """APGD-CE and APGD-T."""
        return MEMBERS[:2]


@ATTACKS.register("apgd-ce", summary="AutoPGD on the cross-entropy, 100 steps", source=_SOURCE, cost=100)
@dataclass(frozen=True, kw_only=True)
class APGDCE(AutoAttack):
    """AutoPGD on the cross-entropy."""

    name: ClassVar[str] = "apgd-ce"
    title: ClassVar[str] = "APGD-CE"


@ATTACKS.register("apgd-t", summary="AutoPGD, targeted DLR loss, 9 targets of 100 steps", source=_SOURCE, cost=900)
@dataclass(frozen=True, kw_only=True)
class APGDT(AutoAttack):
    """Targeted AutoPGD on the difference-of-logits ratio."""

    name: ClassVar[str] = "apgd-t"
    title: ClassVar[str] = "APGD-T"


@ATTACKS.register("fab-t", summary="fast adaptive boundary attack, 9 targets of 100 steps", source=_SOURCE, cost=1800)
@dataclass(frozen=True, kw_only=True)
class FABT(AutoAttack):
    """Targeted fast adaptive boundary attack."""

    name: ClassVar[str] = "fab-t"
    title: ClassVar[str] = "FAB-T"


@ATTACKS.register("square", summary="Square attack, 5,000 queries, no gradients", source=_SOURCE, cost=5000)
@dataclass(frozen=True, kw_only=True)
class Square(AutoAttack):
    """The score-based black-box Square attack."""

    name: ClassVar[str] = "square"
    title: ClassVar[str] = "Square"
    black_box: ClassVar[bool] = True
