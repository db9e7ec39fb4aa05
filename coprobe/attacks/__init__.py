"""Attacks: FGSM, PGD, C&W and AutoAttack; the gradient attacks also hand out their steps."""

from coprobe.attacks.base import ATTACKS, Attack, StepAttack, parse, project
from coprobe.attacks.examples import AdversarialBatch, AdversarialExamples
from coprobe.core.registry import discover

discover(__name__)

__all__ = ["ATTACKS", "AdversarialBatch", "AdversarialExamples", "Attack", "StepAttack", "parse", "project"]
