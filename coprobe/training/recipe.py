"""Every knob of a training run as one frozen value, saved beside the checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coprobe.errors import InputError, unknown

_CHOICES = {
    "schedule": ("constant", "step", "one-cycle"),
    "augment": ("none", "crop", "crop-flip"),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a checkpoint is trained. Budgets are n of n/255, as people write them.

    Args:
        method: name in `coprobe.training.METHODS`.
        options: the method's own options by name (see its docstring).
        data: data set, as for `--data`.
        limit_train: class-balanced number of training images; None takes all that are not held out.
        held_out: training images kept aside for the accuracies of each epoch; never the test set.
        arch: name in `coprobe.models.ARCHITECTURES`.
        width: channels of the first stage; None takes the architecture's own.
        eps_train: radius of the training perturbation.
        eps_eval: radius at which each epoch is evaluated; None takes eps_train (8 for clean training).
        step_size: size of the attack's step; None takes the method's own.
        epochs, batch_size, momentum, weight_decay: of SGD.
        lr: the peak learning rate.
        schedule: `constant`; `step`, × 0.1 at 100/110 and 105/110 of the run (the paper's); or `one-cycle`,
            linear up for 40 % of the run and down to 0, per iteration.
        augment: `none`, `crop` (random, zero padding 4) or `crop-flip`.
        stable_node, stable_weight: L_stable (Eq. 8) at this node with this alpha_3; weight 0 switches it off.
        logit_weight: factor of the logit term (Eq. 10); None takes the method's own.
        stop_at_collapse: end the run after the first epoch in which held-out PGD-10 accuracy is at most 2 % and FGSM
            accuracy at least 40 points above it, so that the checkpoint is one of a collapsed model.
        seed: of weights, order, augmentation and perturbations.
    """

    method: str = "fgsm"
    options: Mapping[str, Any] = field(default_factory=dict)
    data: str = "cifar10"
    limit_train: int | None = None
    held_out: int = 1000
    arch: str = "resnet18"
    width: int | None = None
    eps_train: float = 8.0
    eps_eval: float | None = None
    step_size: float | None = None
    epochs: int = 30
    batch_size: int = 128
    lr: float = 0.1
    schedule: str = "one-cycle"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: str = "crop-flip"
    stable_node: str | None = None
    stable_weight: float = 0.0
    logit_weight: float | None = None
    stop_at_collapse: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for key, choices in _CHOICES.items():
            if getattr(self, key) not in choices:
                raise unknown(key, str(getattr(self, key)), choices)
        for key in ("eps_train", "eps_eval", "step_size"):
            value = getattr(self, key)
            if value is not None and not 0 <= value <= 255:
                raise InputError(f"{_flag(key)} {value:g}: must lie between 0 and 255 (in 255ths)")
        for key in ("epochs", "batch_size", "held_out"):
            if getattr(self, key) < 1:
                raise InputError(f"{_flag(key)} {getattr(self, key)}: must be at least 1")
        for key in ("lr", "momentum", "weight_decay", "stable_weight"):
            if not 0 <= getattr(self, key) < float("inf"):
                raise InputError(f"{_flag(key)} {getattr(self, key):g}: must be a finite number, at least 0")
        if self.stable_weight and not self.stable_node:
            raise InputError("--stable-weight needs --stable-node (B in the paper)")
        if self.stable_node and not self.stable_weight:
            raise InputError("--stable-node needs --stable-weight (200 in the paper)")

    @property
    def evaluation_epsilon(self) -> float:
        """Radius of the per-epoch attacks, a fraction."""
        if self.eps_eval is not None:
            return self.eps_eval / 255
        return (8.0 if self.method == "clean" else self.eps_train) / 255

    def learning_rate(self, progress: float) -> float:
        """The learning rate after the fraction `progress` in [0, 1) of all iterations."""
        if self.schedule == "one-cycle":
            return self.lr * min(progress / 0.4, (1 - progress) / 0.6)
        if self.schedule == "step":
            return self.lr * 0.1 ** sum(progress >= milestone / 110 for milestone in (100, 105))
        return self.lr

    def stops_after(self, fgsm: float, pgd10: float) -> bool:
        """Whether an epoch with these held-out accuracies (fractions) is the last one."""
        return self.stop_at_collapse and pgd10 <= 0.02 and fgsm >= pgd10 + 0.4

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON and for checkpoints."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_dict`; an unknown key raises `InputError` with the nearest names."""
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise unknown("key of a recipe", key, known)
        return cls(**values)


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")
