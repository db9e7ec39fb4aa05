"""Attacks: FGSM, PGD, C&W and AutoAttack; the gradient attacks also hand out their steps."""

from coprobe.attacks.ball import NORMS, Ball, project
from coprobe.attacks.base import ATTACKS, Attack, StepAttack, parse
from coprobe.attacks.examples import AdversarialBatch, AdversarialExamples, Spool
from coprobe.attacks.own import AnyAttack, as_attack, own
from coprobe.core.registry import discover

discover(__name__)

__all__ = [
    "ATTACKS",
    "NORMS",
    "AdversarialBatch",
    "AdversarialExamples",
    "AnyAttack",
    "Attack",
    "Ball",
    "Spool",
    "StepAttack",
    "as_attack",
    "own",
    "parse",
    "project",
]
