"""The training runs behind the paper's figures and tables, in the paper's own numbers, and what a scale makes of them.

A run is written as the paper describes it (ξ_T = 12 means 12/255, α3 = 200); `PaperRun.recipe` turns it into the recipe
that a scale can afford. So every scale trains the same plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from coprobe.errors import unknown
from coprobe.training.recipe import PRESETS, Recipe

#: α3 of Table 1, at every node, and of Table 2, at B.
TABLE1_ALPHA3, TABLE2_ALPHA3 = (100, 200, 400, 1000), (100, 200, 300, 400, 1000)
#: ξ_T of Tables 5 and 7.
TABLE5_XI = (10, 12, 14, 16)
#: ξ_E of Fig. 12, and the runs on which its images are crafted, whose ξ_T are the same.
FIG12_XI, FIG12_SOURCES = (8, 12, 16), ("cs-8", "cs-12", "cs-16")


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        name: demo, small or paper.
        about: in a few words, for captions.
        data: what stands for the paper's data sets, by their names cifar10 and cifar100.
        knobs: of every run, over the paper's own; `None` for a run's own schedule stays.
        stretch: budgets and noise are the paper's times this (digits bear more than photographs).
        weights: α3 of L_stable is the paper's times this (short runs bear less).
        co_weights: likewise of L_co, whose second term has no bound and soon outgrows the loss.
        baseline: the method in the place of FGSM-MEP, which does not collapse within few updates.
        own_schedules: whether runs keep schedules of their own (ATAS, ZeroGrad).
        co_images: training images on which L_co chooses its channels.
        images: test images, class-balanced; None for all.
        seeds: how many times a run is trained, by its name; once if it is not named.
        attacks: the attack in each column of the paper; a column without one is left out.
    """

    name: str
    about: str
    data: Mapping[str, str]
    knobs: Mapping[str, Any]
    attacks: Mapping[str, str]
    stretch: float = 1.0
    weights: float = 1.0
    co_weights: float = 1.0
    baseline: str = "fgsm-mep"
    own_schedules: bool = False
    co_images: int = 2000
    images: int | None = None
    seeds: Mapping[str, int] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        """Where its runs are if nobody says otherwise."""
        return Path("runs/paper") / self.name

    def budget(self, xi: float) -> float:
        """The paper's budget or noise `xi`, n of n/255, at this scale."""
        return xi * self.stretch


_ATTACKS = {"fgsm": "fgsm", "pgd10": "pgd:10", "pgd20": "pgd:20", "pgd50": "pgd:50", "cw": "cw:20"}

SCALES = {
    scale.name: scale
    for scale in (
        Scale(
            "demo",
            "handwritten digits, ResNet-18 of width 16, minutes on a laptop",
            {"cifar10": "digits"},
            {
                "width": 16, "limit_train": 400, "held_out": 40, "epochs": 6, "batch_size": 16, "lr": 0.05,
                "schedule": "constant", "augment": "crop",
            },
            {**_ATTACKS, "aa": "apgd-ce"},
            stretch=2.5,
            weights=0.1,
            co_weights=0.001,
            baseline="fgsm",
            co_images=100,
            images=40,
        ),
        Scale(
            "small",
            "CIFAR-10, ResNet-18 of width 16, some twenty hours on two cores",
            {"cifar10": "cifar10"},
            {
                "width": 16, "limit_train": 25_000, "held_out": 500, "epochs": 12, "batch_size": 128, "lr": 0.1,
                "precision": "bf16",
            },
            {**_ATTACKS, "apgd_t": "apgd-t", "aa": "apgd-ce"},
            stretch=2/3,
            weights=0.25,
            co_weights=0.001,
            baseline="fgsm-rs",
            co_images=500,
            images=1000,
            seeds=dict.fromkeys(("mep-12", "fd-b200-12", "origin", "mep-8", "mep-16"), 3),
        ),
        Scale(
            "paper",
            "CIFAR-10 and CIFAR-100, ResNet-18, 110 epochs, one GPU",
            {"cifar10": "cifar10", "cifar100": "cifar100"},
            {**PRESETS["paper"], "held_out": 1000, "precision": "bf16"},
            {**_ATTACKS, "apgd_t": "apgd-t", "aa": "aa"},
            own_schedules=True,
        ),
    )
}  # fmt: skip


def scale_of(name: str) -> Scale:
    """The scale of this name; `InputError` for an unknown one."""
    if name not in SCALES:
        raise unknown("scale", name, SCALES)
    return SCALES[name]


@dataclass(frozen=True)
class PaperRun:
    """One training run of the paper.

    Attributes:
        name: of its directory.
        knobs: what differs from the defaults of a recipe, in the paper's numbers; a method `baseline` is the scale's.
        data: cifar10 or cifar100.
        schedule: knobs of a schedule of its own.
        watched: also measured at 16/255 after every epoch, for the figures over epochs.
    """

    name: str
    knobs: Mapping[str, Any]
    data: str = "cifar10"
    schedule: Mapping[str, Any] = field(default_factory=dict)
    watched: bool = False

    @property
    def xi(self) -> float | None:
        """ξ_T, n of n/255; None for a run without attack."""
        return self.knobs.get("eps_train")

    def recipe(self, scale: Scale, data: Mapping[str, str], seed: int = 0) -> Recipe:
        """What is trained at `scale`, on the images that `data` names by cifar10 and cifar100."""
        own = self.schedule if scale.own_schedules else {}
        knobs = {**scale.knobs, **self.knobs, **own, "data": data[self.data], "seed": seed}
        if knobs["method"] == "baseline":
            knobs["method"] = scale.baseline
            if scale.baseline != "fgsm-mep":  # options and the logit term are FGSM-MEP's; others have none by default
                knobs.pop("options", None)
        factors = {"eps_train": scale.stretch, "stable_weight": scale.weights, "co_weight": scale.co_weights}
        knobs |= {key: factor * knobs[key] for key, factor in factors.items() if key in knobs}
        if "co_node" in knobs:
            knobs["co_images"] = scale.co_images
        knobs["eps_also"] = scale.budget(16) if self.watched else 0.0
        return Recipe(**knobs)


def _baseline(xi: float, **knobs: Any) -> dict[str, Any]:
    """The paper's baseline: FGSM-MEP without the logit term of Eq. 10 (spec of the runs that fall into CO)."""
    return {"method": "baseline", "eps_train": float(xi), "logit_weight": 0.0, **knobs}


def _stable(node: str, alpha3: int, xi: float, **more: Any) -> PaperRun:
    """Ours-FD: the baseline with L_stable (Eq. 8) at a node."""
    name = f"fd-{node.lower()}{alpha3}-{xi:g}"
    return PaperRun(name, _baseline(xi, stable_node=node, stable_weight=float(alpha3)), **more)


def _inducing(name: str, percent: float, by: str) -> PaperRun:
    """The baseline at 8/255 with L_co (Eq. 9) at node B."""
    knobs = _baseline(8, co_node="B", co_top=float(percent), co_by=by, co_weight=200.0)
    return PaperRun(name, knobs, watched=True)


def _on_cifar100(run: PaperRun) -> PaperRun:
    options = {"options": {"reset_every": 10}} if run.knobs["method"] != "clean" else {}
    return replace(run, name=f"{run.name}-c100", knobs={**run.knobs, **options}, data="cifar100")


_ATAS = {"epochs": 30, "schedule": "step", "milestones": (24, 28)}
_ZEROGRAD = {"epochs": 30, "schedule": "one-cycle", "peak": 0.5, "lr": 0.2, "padding": "reflect"}


def _mep(xi: float, **more: Any) -> PaperRun:
    return PaperRun(f"mep-{xi:g}", _baseline(xi), **more)


def _plain(short: str, method: str, xi: float, schedule: Mapping[str, Any] | None = None) -> PaperRun:
    return PaperRun(f"{short}-{xi:g}", {"method": method, "eps_train": float(xi)}, schedule=schedule or {})


def _with_eq10(xi: float) -> PaperRun:
    return PaperRun(f"mep-eq10-{xi:g}", _baseline(xi, logit_weight=10.0))


_ORIGIN = PaperRun("origin", {"method": "clean"})
_LATE = [_stable(node, alpha3, 12) for node in "ABCDE" for alpha3 in TABLE1_ALPHA3]

#: Every run, in the order in which they complete a figure or table.
RUNS: dict[str, PaperRun] = {
    run.name: run
    for run in (
        _mep(12, watched=True), _stable("B", 200, 12), _ORIGIN, _with_eq10(12),
        _mep(8, watched=True), _inducing("co-10-8", 10, "t-act"), _inducing("co-1-8", 1, "t-act"),
        _inducing("co-3-8", 3, "t-act"), _inducing("co-20-8", 20, "t-act"), _inducing("co-var10-8", 10, "variance"),
        _mep(16),
        PaperRun("noise-16", {"method": "noise", "eps_train": 16.0}),
        PaperRun("mep-noise-16", _baseline(16, noise="added")),
        PaperRun("mep-noise-both-16", _baseline(16, noise="both")),
        *(_plain("cs", "cs-mep", xi) for xi in FIG12_XI),
        _on_cifar100(_ORIGIN),
        *(_plain("rs", "fgsm-rs", xi) for xi in TABLE5_XI),
        _mep(10), _mep(14), *(_plain("cs", "cs-mep", xi) for xi in (10, 14)),
        *(_stable("B", 200, xi) for xi in (10, 14, 16)),
        *(_plain("atas", "atas", xi, _ATAS) for xi in TABLE5_XI),
        *(_plain("zerograd", "zerograd", xi, _ZEROGRAD) for xi in TABLE5_XI),
        *_LATE, _stable("B", 300, 12), _with_eq10(16),
        *(_on_cifar100(_stable("B", alpha3, 12)) for alpha3 in TABLE2_ALPHA3),
        _on_cifar100(_stable("B", 200, 16)),
        *(_on_cifar100(_plain("cs", "cs-mep", xi)) for xi in (12, 16)),
    )
}  # fmt: skip
