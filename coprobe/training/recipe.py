"""Every knob of a training run as one frozen value, saved beside the checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from coprobe.errors import InputError, unknown

#: The steps of the paper's schedule, as fractions of the run: epochs 100 and 105 of 110.
_MILESTONES = (100 / 110, 105 / 110)

#: What is accepted for a knob of each annotation, and how people call that.
_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "str": (str, "text"),
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "bool": (bool, "true or false"),
    "tuple[int, ...]": (tuple, "a list of epochs"),
    "Mapping[str, Any]": (Mapping, "options by name"),
}


def _knob(default: Any, group: str, about: str, **rules: Any) -> Any:
    """A field with what people read about it, and its rules: `choices`, `least`, `most`, `above`, `in_255ths`."""
    if default is dict:
        return field(default_factory=dict, metadata={"group": group, "help": about, **rules})
    return field(default=default, metadata={"group": group, "help": about, **rules})


_METHOD, _DATA, _MODEL, _SGD = "Method", "Data", "Model", "Optimisation"
_STABLE, _CO, _WATCH = "Regularizers and noise", "Inducing CO (L_co, Eq. 9)", "Watching and stopping"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a checkpoint is trained. Each knob says beside it what it does, as `coprobe train --help` shows it.

    Budgets are n of n/255, as people write them. The saved recipe with its seed gives the same weights again, bit for
    bit on the same machine with the same number of threads.

    Raises:
        InputError: a value out of range, or knobs that need each other.
    """

    method: str = _knob("fgsm", _METHOD, "Name of the method; 'coprobe methods' lists them.")
    options: Mapping[str, Any] = _knob(dict, _METHOD, "The method's own option, KEY=VALUE; repeatable.")
    eps_train: float = _knob(8.0, _METHOD, "Radius of the training perturbation, n of n/255.", in_255ths=True)
    step_size: float | None = _knob(
        None, _METHOD, "Attack step, n of n/255; the method's own if unset.", in_255ths=True
    )

    data: str = _knob("cifar10", _DATA, "NAME, folder:DIR or parquet:DIR.")
    limit_train: int | None = _knob(None, _DATA, "Class-balanced training images; all if unset.", least=1)
    held_out: int | None = _knob(
        None, _DATA, "Training images kept from training, to watch it; if unset, 50 to 1,000, a tenth of those trained "
        "on.", least=1
    )  # fmt: skip
    augment: str = _knob("crop-flip", _DATA, "", choices=("none", "crop", "crop-flip"))
    padding: str = _knob("zero", _DATA, "What crops see beyond the border.", choices=("zero", "reflect"))

    arch: str = _knob("resnet18", _MODEL, "Architecture.")
    width: int | None = _knob(None, _MODEL, "Channels of the first stage; the architecture's own if unset.", least=1)
    init: str | None = _knob(None, _MODEL, "Checkpoint to start from; random weights if unset.")

    epochs: int = _knob(30, _SGD, "Passes over the training images.", least=1)
    batch_size: int = _knob(128, _SGD, "Images per update, over all processes.", least=1)
    lr: float = _knob(0.1, _SGD, "Peak learning rate.", least=0)
    schedule: str = _knob(
        "one-cycle",
        _SGD,
        "Constant; × 0.1 at milestones; or linear up and down.",
        choices=("constant", "step", "one-cycle"),
    )
    milestones: tuple[int, ...] | None = _knob(
        None, _SGD, "Epochs of 'step', as 100,105; 100/110 and 105/110 of the run if unset."
    )
    peak: float = _knob(0.4, _SGD, "Where in the run 'one-cycle' peaks, as a fraction.", above=0, below=1)
    momentum: float = _knob(0.9, _SGD, "Of SGD.", least=0, below=1)
    weight_decay: float = _knob(5e-4, _SGD, "Of all parameters.", least=0)
    average: float = _knob(0.0, _SGD, "Decay per update of the weights' moving average; 0: none.", least=0, below=1)
    precision: str = _knob("32", _SGD, "Of the passes; weights stay float32.", choices=("32", "bf16"))
    sync_batchnorm: bool = _knob(False, _SGD, "Batch-norm statistics over all processes, not each its own.")

    stable_node: str | None = _knob(None, _STABLE, "Node of L_stable (Eq. 8), B in the paper; no such term if unset.")
    stable_weight: float = _knob(0.0, _STABLE, "alpha_3 of L_stable; 200 in the paper.", least=0)
    stable_detach: bool = _knob(False, _STABLE, "No gradient of L_stable through the pass at x + δ0.")
    logit_weight: float | None = _knob(
        None, _STABLE, "Factor of the logit term (Eq. 10); the method's own if unset.", least=0
    )
    noise: str = _knob(
        "none",
        _STABLE,
        "Uniform noise δ0 of the training radius on x + δ (added: Eq. 12), or the mean loss of x + δ0 and "
        "x + δ + δ0 (both); Eq. 11 is --method noise.",
        choices=("none", "added", "both"),
    )

    co_node: str | None = _knob(None, _CO, "Node of L_co, B in the paper; no such term if unset.")
    co_top: float | None = _knob(
        None, _CO, "Percent of the node's channels in C_p%; 10 in the paper; unset without L_co.", above=0, most=100
    )
    co_weight: float = _knob(200.0, _CO, "alpha_3 of the feature difference in L_co.", least=0)
    co_by: str = _knob("t-act", _CO, "What ranks the channels.", choices=("t-act", "variance"))
    co_select: str = _knob("each-epoch", _CO, "When they are chosen.", choices=("each-epoch", "once"))
    co_images: int = _knob(2000, _CO, "Training images that they are chosen on, under PGD-10.", least=1)

    eps_eval: float | None = _knob(
        None, _WATCH, "Radius of the per-epoch attacks, n of n/255; eps-train if unset.", in_255ths=True
    )
    eps_also: float = _knob(16.0, _WATCH, "Their second radius; 0: none.", in_255ths=True)
    watch: str = _knob("held-out", _WATCH, "Images of the per-epoch accuracies.", choices=("held-out", "test"))
    early_stop: bool = _knob(
        False, _WATCH, "Stop, with the weights before, when PGD-5 accuracy on a training batch drops by more than 0.2."
    )
    stop_at_collapse: bool = _knob(
        False, _WATCH, "Stop after an epoch with PGD-10 accuracy ≤ 2 % and FGSM 40 points above."
    )
    seed: int = _knob(0, _WATCH, "Of weights, order, augmentation and perturbations.", least=0)

    def __post_init__(self) -> None:
        milestones: Any = self.milestones
        if isinstance(milestones, list):  # JSON knows no tuples
            object.__setattr__(self, "milestones", tuple(milestones))
        for knob in dataclasses.fields(self):
            value = getattr(self, knob.name)
            kind, _, optional = str(knob.type).partition(" | ")
            if value is not None or not optional:
                _check_kind(flag(knob.name), value, kind)
                _check(flag(knob.name), value, knob.metadata)
        self._check_together()

    def _check_together(self) -> None:
        if self.stable_weight and not self.stable_node:
            raise InputError("--stable-weight needs --stable-node (B in the paper)")
        if self.stable_node and not self.stable_weight:
            raise InputError("--stable-node needs --stable-weight (200 in the paper)")
        if self.stable_detach and not self.stable_node:
            raise InputError("--stable-detach needs --stable-node and --stable-weight")
        if self.co_node and self.co_top is None:
            raise InputError("--co-node needs --co-top (10 in the paper)")
        if not self.co_node:
            changed = [
                k.name
                for k in dataclasses.fields(self)
                if k.name.startswith("co_") and getattr(self, k.name) != k.default
            ]
            if changed:
                raise InputError(f"{flag(changed[0])} needs --co-node (B in the paper)")
        if self.milestones is not None:
            if self.schedule != "step":
                raise InputError("--milestones needs --schedule step")
            if list(self.milestones) != [epoch for epoch in range(1, self.epochs) if epoch in self.milestones]:
                raise InputError(f"--milestones must rise and lie between 1 and {self.epochs - 1}, the last epoch")

    def images_held_out(self, total: int) -> int:
        """How many of `total` training images are kept from training.

        To measure one takes as long as to train on ten: FGSM and PGD-10 at two radii. If unset, so many that an epoch
        is watched about as long as it is trained, and no more than are left over, or half of all.
        """
        if self.held_out is not None:
            return self.held_out
        trained = self.limit_train or total
        left = total - (self.limit_train or total // 2)
        return max(1, min(1000, max(50, trained // 10), left))

    @property
    def evaluation_epsilon(self) -> float:
        """Radius of the per-epoch attacks, a fraction."""
        if self.eps_eval is not None:
            return self.eps_eval / 255
        return (8.0 if self.method == "clean" else self.eps_train) / 255

    @property
    def phases(self) -> tuple[tuple[int, int], ...]:
        """First epoch and end of each stretch between two steps of the learning rate."""
        steps = [round(self.epochs * at) for at in self._milestones] if self.schedule == "step" else []
        edges = [0, *steps, self.epochs]
        return tuple(pairwise(edges))

    @property
    def _milestones(self) -> tuple[float, ...]:
        if self.milestones is None:
            return _MILESTONES
        return tuple(epoch / self.epochs for epoch in self.milestones)

    def learning_rate(self, progress: float) -> float:
        """The learning rate after the fraction `progress` in [0, 1) of all updates."""
        if self.schedule == "one-cycle":
            return self.lr * min(progress / self.peak, (1 - progress) / (1 - self.peak))
        if self.schedule == "step":
            return self.lr * 0.1 ** sum(progress >= milestone for milestone in self._milestones)
        return self.lr

    def stops_after(self, fgsm: float, pgd10: float) -> bool:
        """Whether an epoch with these accuracies (fractions) is the last one."""
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

    def differences(self, other: Recipe) -> list[str]:
        """The knobs in which two recipes differ, as `--lr 0.1 (not 0.2)`."""
        mine, others = self.to_dict(), other.to_dict()
        return [f"{flag(key)} {mine[key]} (not {others[key]})" for key in mine if mine[key] != others[key]]


def flag(knob: str) -> str:
    """The option of a knob on the command line."""
    return "--option" if knob == "options" else "--" + knob.replace("_", "-")


def _check_kind(name: str, value: Any, kind: str) -> None:
    """Raise `InputError` for a value, perhaps from JSON, that is not of the kind that a knob's annotation names."""
    wanted, words = _KINDS[kind]
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind != "bool"):
        raise InputError(f"{name} {value!r}: must be {words}")


def _check(name: str, value: Any, rules: Mapping[str, Any]) -> None:
    """Raise `InputError` unless the value follows the rules; NaN never does."""
    if "choices" in rules and value not in rules["choices"]:
        raise unknown(name.removeprefix("--"), value, rules["choices"])
    if rules.get("in_255ths") and not 0 <= value <= 255:
        raise InputError(f"{name} {value:g}: must lie between 0 and 255 (in 255ths)")
    if not {"least", "above", "below", "most"} & set(rules):
        return
    low = value >= rules["least"] if "least" in rules else value > rules["above"]
    high = value < rules.get("below", float("inf")) and value <= rules.get("most", float("inf"))
    if not (low and high):
        words = {"least": "at least", "above": "above", "below": "below", "most": "at most"}
        wanted = " and ".join(f"{word} {rules[key]}" for key, word in words.items() if key in rules)
        kind = "" if isinstance(value, int) else "a finite number, "
        raise InputError(f"{name} {value:g}: must be {kind}{wanted}")


#: Named sets of knobs, over which single ones can be changed.
PRESETS: dict[str, dict[str, Any]] = {
    # the paper's schedule
    "paper": {"epochs": 110, "schedule": "step", "lr": 0.1, "batch_size": 128},
    # what fast adversarial training usually takes
    "fast": {"epochs": 30, "schedule": "one-cycle", "lr": 0.2, "batch_size": 128},
    # FGSM on scikit-learn's digits at a radius where it collapses
    "demo": {
        "method": "fgsm",
        "data": "digits",
        "limit_train": 1280,
        "held_out": 150,
        "width": 16,
        "eps_train": 44.0,
        "epochs": 12,
        "batch_size": 32,
        "lr": 0.05,
        "schedule": "constant",
        "augment": "crop",
        "stop_at_collapse": True,
        "eps_also": 0.0,
    },
}
