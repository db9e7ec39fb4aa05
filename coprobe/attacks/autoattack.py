"""AutoAttack and its members, run by the authors' own code (pyautoattack)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from coprobe.attacks.base import ATTACKS, Attack
from coprobe.errors import InputError

_SOURCE = "Croce and Hein 2020"


@ATTACKS.register(
    "aa",
    summary="AutoAttack, standard version: APGD-CE, APGD-T, FAB-T and Square, each on what is left",
    source=_SOURCE,
    cost=7800,
)
@dataclass(frozen=True, kw_only=True)
class AutoAttack(Attack):
    """AutoAttack (standard, L∞) by the package pyautoattack; the generator's initial seed is its seed.

    Images that the model misclassifies anyway, and those that no member breaks, come back as they are.

    Raises:
        InputError: images other than float32, or fewer than four classes for APGD-T, whose loss needs four.
    """

    name: ClassVar[str] = "aa"
    title: ClassVar[str] = "AA"
    members: ClassVar[tuple[str, ...]] = ("apgd-ce", "apgd-t", "fab-t", "square")

    def run(self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Hand the batch to pyautoattack."""
        import pyautoattack

        if len(x) == 0:
            return x
        if x.dtype != torch.float32:
            raise InputError(
                f"{self.title} computes in float32, and the images are {x.dtype}; convert model and images"
            )
        with torch.no_grad():
            classes = model(x[:1]).shape[1]
        if classes < 4 and "apgd-t" in self.members:
            raise InputError(f"{self.title} needs at least 4 classes, and this model has {classes}; use pgd or cw")
        adversary = pyautoattack.AutoAttack(
            model, norm="Linf", eps=self.epsilon, seed=generator.initial_seed(), device=x.device
        )
        adversary.attacks_to_run = list(self.members)
        adversary.apgd_targeted.n_target_classes = min(9, classes - 1)
        adversary.fab.n_target_classes = min(9, classes - 1)
        with _globals_kept():
            # it views images as rows, which a channels-last layout can't be
            x_adv, _ = adversary.run_standard_evaluation(x.contiguous(), y, batch_size=len(x))
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


@ATTACKS.register(
    "aa-fast", summary="AutoAttack without FAB-T and Square: APGD-CE, then APGD-T", source=_SOURCE, cost=1000
)
@dataclass(frozen=True, kw_only=True)
class AutoAttackFast(AutoAttack):
    """APGD-CE, and APGD-T on what it leaves; not AutoAttack, which would try FAB-T and Square on the rest."""

    name: ClassVar[str] = "aa-fast"
    title: ClassVar[str] = "AA-fast"
    members: ClassVar[tuple[str, ...]] = ("apgd-ce", "apgd-t")


@ATTACKS.register("apgd-ce", summary="AutoPGD on the cross-entropy, 100 steps", source=_SOURCE, cost=100)
@dataclass(frozen=True, kw_only=True)
class APGDCE(AutoAttack):
    """AutoPGD on the cross-entropy."""

    name: ClassVar[str] = "apgd-ce"
    title: ClassVar[str] = "APGD-CE"
    members: ClassVar[tuple[str, ...]] = ("apgd-ce",)


@ATTACKS.register("apgd-t", summary="AutoPGD, targeted DLR loss, 9 targets of 100 steps", source=_SOURCE, cost=900)
@dataclass(frozen=True, kw_only=True)
class APGDT(AutoAttack):
    """Targeted AutoPGD on the difference-of-logits ratio."""

    name: ClassVar[str] = "apgd-t"
    title: ClassVar[str] = "APGD-T"
    members: ClassVar[tuple[str, ...]] = ("apgd-t",)


@ATTACKS.register("fab-t", summary="fast adaptive boundary attack, 9 targets of 100 steps", source=_SOURCE, cost=1800)
@dataclass(frozen=True, kw_only=True)
class FABT(AutoAttack):
    """Targeted fast adaptive boundary attack."""

    name: ClassVar[str] = "fab-t"
    title: ClassVar[str] = "FAB-T"
    members: ClassVar[tuple[str, ...]] = ("fab-t",)


@ATTACKS.register("square", summary="Square attack, 5,000 queries, no gradients", source=_SOURCE, cost=5000)
@dataclass(frozen=True, kw_only=True)
class Square(AutoAttack):
    """The score-based black-box Square attack."""

    name: ClassVar[str] = "square"
    title: ClassVar[str] = "Square"
    members: ClassVar[tuple[str, ...]] = ("square",)
