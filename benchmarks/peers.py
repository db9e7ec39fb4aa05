"""Other libraries, each asked for the same thing: PGD, or what passes at some modules of a network.

Every function imports its library itself, so one that is not installed is missed only where it is asked for.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.subject import Subject

#: From images and labels to adversarial images, all on one device.
Craft = Callable[[Tensor, Tensor], Tensor]
#: From images to activations, by the names that were given.
Look = Callable[[Tensor], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Schedule:
    """PGD with every image taking every step.

    Args:
        epsilon: radius, a fraction.
        step: a fraction.
        iterations: steps.
        random_start: uniform in the ball, or none.
    """

    epsilon: float
    step: float
    iterations: int
    random_start: bool = True


def torchattacks(subject: Subject, schedule: Schedule) -> Craft:
    import torchattacks

    return torchattacks.PGD(
        subject.model,
        eps=schedule.epsilon,
        alpha=schedule.step,
        steps=schedule.iterations,
        random_start=schedule.random_start,
    )


def foolbox(subject: Subject, schedule: Schedule) -> Craft:
    import foolbox

    attack = foolbox.attacks.LinfPGD(
        abs_stepsize=schedule.step, steps=schedule.iterations, random_start=schedule.random_start
    )
    bounded = foolbox.PyTorchModel(subject.model, bounds=(0, 1), device=subject.device)
    return lambda x, y: attack(bounded, x, y, epsilons=schedule.epsilon)[1]


def art(subject: Subject, schedule: Schedule) -> Craft:
    """Takes and gives arrays, which is part of what is timed."""
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        subject.model,
        nn.CrossEntropyLoss(),
        input_shape=subject.dataset.image_shape,
        nb_classes=subject.dataset.num_classes,
        clip_values=(0.0, 1.0),
        device_type="cpu" if subject.device.type == "cpu" else "gpu",
    )
    attack = ProjectedGradientDescent(
        classifier,
        eps=schedule.epsilon,
        eps_step=schedule.step,
        max_iter=schedule.iterations,
        num_random_init=int(schedule.random_start),
        batch_size=subject.batch_size,
        verbose=False,
    )

    def craft(x: Tensor, y: Tensor) -> Tensor:
        return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(subject.device)

    return craft


def adv_lib(subject: Subject, schedule: Schedule) -> Craft:
    """Returns the last misclassified of the points x_0 … x_{T−1}, or else the clean image."""
    with _empty("visdom"):  # which draws curves, and doesn't build with a current setuptools
        from adv_lib.attacks import pgd_linf

    return lambda x, y: pgd_linf(
        subject.model,
        x,
        y,
        schedule.epsilon,
        steps=schedule.iterations,
        random_init=schedule.random_start,
        absolute_step_size=schedule.step,
    )


#: Those that give back a point before the last one.
LATE = ("adv-lib",)
#: By package.
ATTACKS: dict[str, Callable[[Subject, Schedule], Craft]] = {
    "torchattacks": torchattacks,
    "foolbox": foolbox,
    "adversarial-robustness-toolbox": art,
    "adv-lib": adv_lib,
}


def captum(model: nn.Module, modules: Mapping[str, str]) -> Look:
    from captum.attr import LayerActivation

    layers = LayerActivation(model, [model.get_submodule(path) for path in modules.values()])
    return lambda x: dict(zip(modules, layers.attribute(x), strict=True))


def torchvision(model: nn.Module, modules: Mapping[str, str]) -> Look:
    from torchvision.models.feature_extraction import create_feature_extractor

    return create_feature_extractor(model, {path: name for name, path in modules.items()})


def nnsight(model: nn.Module, modules: Mapping[str, str]) -> Look:
    with _empty("transformers"):  # imported for language models, and then by torchmetrics, too
        import nnsight

    traced = nnsight.NNsight(model)
    envoys = {name: traced.get(path) for name, path in modules.items()}

    def look(x: Tensor) -> Mapping[str, Tensor]:
        seen: dict[str, Any] = {}
        with traced.trace(x):
            for name, envoy in envoys.items():
                seen[name] = nnsight.save(envoy.output)
        return seen

    return look


#: By package.
RECORDERS: dict[str, Callable[[nn.Module, Mapping[str, str]], Look]] = {
    "captum": captum,
    "torchvision": torchvision,
    "nnsight": nnsight,
}


@contextmanager
def _empty(name: str) -> Iterator[None]:
    """An empty module in the place of one that a library imports and does not need here."""
    there = name in sys.modules
    if not there:
        sys.modules[name] = types.ModuleType(name)
    try:
        yield
    finally:
        if not there:
            del sys.modules[name]
