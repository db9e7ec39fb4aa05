"""Checks of what was asked for: attacks and budget, nodes, classes, normalisation."""

from __future__ import annotations

from coprobe.attacks.ball import length
from coprobe.attacks.gradient import GradientAttack
from coprobe.checkpoint.class_order import match_classes
from coprobe.checkpoint.normalisation_check import check_normalisation
from coprobe.checks.base import CHECKS, Finding
from coprobe.checks.passes import alone as independent
from coprobe.checks.subject import Subject, same
from coprobe.errors import CoprobeError, InputError
from coprobe.nodes import record


@CHECKS.register("budget", summary="steps × step size of every attack reach the radius", quick=True)
def budget(subject: Subject) -> Finding | None:
    """An attack that can't get to the border of the ball measures a smaller budget than it is said to."""
    short = []
    for attack in subject.attacks:
        if not isinstance(attack, GradientAttack):
            continue
        steps, size, _ = attack.schedule
        if steps * size < attack.epsilon * (1 - 1e-6):
            short.append(f"{attack.label} goes {length(steps * size, attack.norm)}")
    if not short:
        return None
    return Finding(
        f"{' and '.join(short)} at most, and the budget is {subject.ball}; take more steps or a larger step-size"
    )


@CHECKS.register("nodes", summary="at every node there is a row for every image, whatever its batch", quick=False)
def rows(subject: Subject) -> Finding | None:
    """What is recorded of an image alone is what is recorded of it in a batch."""
    if not subject.repeats:
        return None
    images, is_independent = subject.images[:5], independent(subject) is None
    for node in subject.nodes:
        try:
            with record(subject.model, [node]) as seen:
                subject.logits(images)
                together = seen[node].double()
                subject.logits(images[:1])
                alone = seen[node].double()
        except CoprobeError as error:
            return Finding(str(error))
        if len(together) != len(images) or (is_independent and not same(alone, together[:1])):
            return Finding(
                f"node '{node}' has {len(together)} rows for {len(images)} images, or rows that depend on the other "
                "images; name other nodes ('coprobe nodes' lists them)"
            )
    return None


@CHECKS.register("classes", summary="the images' classes are the model's, in its order", quick=False)
def classes(subject: Subject) -> Finding | None:
    """By names, where both have some."""
    try:
        said = match_classes(subject.checkpoint.classes, subject.dataset.classes).sentence
    except InputError as error:
        said = str(error)
    return Finding(said) if said else None


@CHECKS.register("normalisation", summary="no other normalisation fits clean images better", quick=False)
def normalisation(subject: Subject) -> Finding | None:
    """The normalisation check, whatever the file says."""
    found = check_normalisation(
        subject.checkpoint, subject.dataset, device=subject.device, batch_size=subject.batch_size
    )
    warning = found.warning(subject.checkpoint.normalised_by)
    return Finding(warning) if warning else None
