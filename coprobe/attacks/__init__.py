"""Attacks: FGSM, PGD, C&W and AutoAttack; the gradient attacks also hand out their steps."""

from coprobe.attacks.ball import NORMS, Ball, project
from coprobe.attacks.base import ATTACKS, Attack, StepAttack, parse
from coprobe.attacks.examples import AdversarialBatch, AdversarialExamples
from coprobe.core.registry import discover

discover(__name__)

__all__ = [
    "ATTACKS",
    "NORMS",
    "AdversarialBatch",
    "AdversarialExamples",
    "Attack",
    "Ball",
    "StepAttack",
    "parse",
    "project",
]
