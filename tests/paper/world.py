"""A made-up world in which every claim of the paper holds, and what can be changed in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pandas as pd

from coprobe.attacks.examples import CLEAN
from coprobe.metrics import ChannelStatistics
from coprobe.metrics.accuracy import wilson
from coprobe.paper.needs import Need
from coprobe.paper.results import MissingResultError
from coprobe.paper.runs import RUNS, SCALES, Scale

EPOCHS, COLLAPSE = 30, 20
CO, NONE, FAILED = 1, 0, -1

#: How runs ended, by pattern; the last that fits counts.
MARKS = {
    "*": NONE, "mep-1*": CO, "rs-*": CO, "co-10-8": CO, "co-20-8": FAILED, "co-var10-8": FAILED,
    "fd-?*00-12": CO, "fd-b[234]00-12": NONE, "fd-b1000-12": NONE, "fd-*-c100": NONE,
    "fd-a400-12": FAILED, "fd-a1000-12": FAILED, "fd-e1000-12": FAILED,
}  # fmt: skip
#: Accuracies by "run attack noise ξ_E source"; the last that fits counts.
ACCURACIES = {
    "* none *": 0.30, "* U(16) *": 0.305, "* clean none *": 0.72, "* clean U(16) *": 0.715,
    "cs-16 clean none *": 0.64,
    "origin* clean none *": 0.94, "origin* clean U(16) *": 0.80,
    "origin* pgd50 *": 0.0, "origin* cw *": 0.0, "origin* aa *": 0.0,
    "origin* fgsm none *": 0.02, "origin* fgsm U(16) *": 0.04,
    "mep-1* none *": 0.01, "mep-1* U(16) *": 0.60, "mep-1* clean none *": 0.881, "mep-1* clean U(16) *": 0.880,
    "mep-16 * U(10) *": 0.30, "mep-16 * U(12) *": 0.40, "mep-16 * U(14) *": 0.50, "mep-16 * Gauss*": 0.55,
    "mep-16 clean U(10) *": 0.877, "mep-16 clean U(12) *": 0.878, "mep-16 clean U(14) *": 0.879,
    "mep-16 clean Gauss(10) *": 0.87, "mep-16 clean Gauss(12) *": 0.86, "mep-16 clean Gauss(14) *": 0.85,
    "mep-16 clean Gauss(16) *": 0.84,
    "mep-1* none * cs-*": 0.85, "mep-1* U(16) * cs-*": 0.85,
    "noise-16 pgd50 *": 0.02, "noise-16 clean none *": 0.85, "noise-16 clean U(16) *": 0.84,
    "mep-noise* pgd50 *": 0.20,
    "rs-* pgd50 none *": 0.01, "rs-* pgd50 U(16) *": 0.40,
}  # fmt: skip
MASKS = {
    "none *": 0.05, "T_act > 0.99 *": 0.30, "T_act > 0.5 *": 0.40, "T_act > 0.1 *": 0.35, "variance *": 0.10,
    "none clean": 0.90, "T_act > 0.99 clean": 0.88, "T_act > 0.5 clean": 0.86, "T_act > 0.1 clean": 0.70,
    "variance clean": 0.60,
}  # fmt: skip
MASKED = {"none": 0, "T_act > 0.99": 2, "T_act > 0.5": 4, "T_act > 0.1": 8, "variance": 4}
#: T_act of 16 channels; the change of salient and other channels over their clean mean.
FEW, LOW = (0.999,) * 2 + (0.01,) * 14, (0.05,) * 16
#: S_k of 16 channels over 10,000 images.
CONCENTRATED, SPREAD = (900.0,) * 2 + (1.0,) * 14, (2000.0,) * 16


def last_fit(patterns: Mapping[str, Any], name: str) -> Any:
    return next(patterns[pattern] for pattern in reversed(patterns) if fnmatchcase(name, pattern))


@dataclass
class World:
    """What the claims read of `Results`, from made-up numbers."""

    marks: Mapping[str, int | Sequence[int]] = field(default_factory=dict)
    accuracy: Mapping[str, float] = field(default_factory=dict)
    masks: Mapping[str, float] = field(default_factory=dict)
    masked: Mapping[str, int] = field(default_factory=dict)
    factors: Mapping[str, Sequence[float]] = field(default_factory=dict)  # V_act at A…E after CO over before
    drift: float = 0.0  # of V_act per epoch
    jump: int = COLLAPSE
    collapse: int = COLLAPSE
    t_act: Mapping[str, Sequence[float]] = field(default_factory=dict)
    changes: tuple[float, float] = (2.0, 0.05)
    jaccard: tuple[float, float] = (0.8, 0.95)
    increments: Mapping[str, Sequence[float]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    stable: float = 0.01  # of L_stable in the last epoch over the first
    draws: Sequence[float] = (0.6, 0.59, 0.61, 0.6, 0.6)
    kinds: Mapping[str, str] = field(default_factory=dict)
    scale: Scale = SCALES["paper"]
    seeds: int = 1
    n: int = 10**7
    absent: Sequence[str] = ()
    reads: set[Need] = field(default_factory=set)

    def seeds_of(self, name: str) -> int:
        return self.seeds

    def seeds_shown(self, names: Iterable[str]) -> str:
        return f"{self.seeds} seeds"

    @property
    def runs(self) -> list[str]:
        return [*RUNS, "mep-12-c100", "mep-12-preact"]

    def outcome(self, name: str, seed: int = 0) -> dict[str, Any]:
        if any(fnmatchcase(name, pattern) for pattern in self.absent):
            raise MissingResultError(f"run {name} is not trained")
        mark = last_fit({**MARKS, **self.marks}, name)
        mark = mark if isinstance(mark, int) else mark[seed]
        return {"collapse_epoch": self.collapse if mark else None, "converged": mark != FAILED, "best_epoch": EPOCHS}

    def kind(self, name: str, which: str = "last") -> str:
        return self.kinds.get(name, "stable")

    def history(self, name: str) -> pd.DataFrame:
        self.outcome(name)
        epochs = np.arange(1, EPOCHS + 1)
        frame = pd.DataFrame({"epoch": epochs, "stable": np.geomspace(1, self.stable, EPOCHS)})
        frame["train_seconds"] = {"mep-12": 100.0, "fd-b200-12": 101.0, "cs-12": 113.0, **self.seconds}.get(name, 100.0)
        factors = self.factors.get(name, (3, 4, 3, 2, 2))
        for node, factor in zip("ABCDE", factors, strict=True):
            column = "" if name == "mep-12-preact" else "_16"  # not watched at the second radius
            rise = 1 + self.drift * epochs
            frame[f"v_act_{node}{column}"] = rise * np.where(epochs >= self.jump, factor, 1.0)
        return pd.concat([frame.assign(seed=seed) for seed in range(self.seeds)], ignore_index=True)

    def accuracies(self, run, which="last", *, attacks=(), noises=("none",), xi=16, sources=()) -> pd.DataFrame:
        self.outcome(run)
        self.reads.add(Need(run, "transfer" if sources else "accuracy", which, xi, attacks, noises, sources))
        rows, known = [], {**ACCURACIES, **self.accuracy}
        for source in sources or ("",):
            for attack in (CLEAN, *attacks):
                for noise in noises:
                    name = f"{run} {attack} {noise} {xi:g} {source}"
                    accuracy = last_fit(known, name)
                    low, high = wilson(accuracy * self.n, self.n)
                    row = {"source": source, "attack": attack, "noise": noise, "accuracy": accuracy}
                    rows.append({**row, "low": low, "high": high})
        return pd.DataFrame(rows)

    def channels(self, run: str, which: str = "last") -> ChannelStatistics:
        self.outcome(run)
        self.reads.add(Need(run, "channels", which))
        t_act = np.array(self.t_act.get(run, FEW if run == "mep-12" else LOW))
        frame = pd.DataFrame({"node": "A", "channel": range(16), "channels": 16, "positions": 4, "images": 10})
        frame["difference_squared"] = np.arctanh(t_act) / 100 * 10 * 16 * 4
        frame["norm"] = frame["clean"] = frame["clean_squared"] = 40.0
        frame["adversarial"] = frame["adversarial_squared"] = 40.0
        frame["difference"] = 40.0 * np.where(t_act > 0.99, *self.changes)
        return ChannelStatistics(frame)

    def get(self, need: Need) -> pd.DataFrame:
        self.outcome(need.run)
        self.reads.add(need)
        return {"overlap": self._overlap, "masking": self._masking, "accuracy": self._draws}.get(
            need.kind, lambda: self._increments(need.run)
        )()

    def _overlap(self) -> pd.DataFrame:
        images, halves = self.jaccard
        row = {"node": "A", "jaccard_images": images, "jaccard_halves": halves, "seed": 0}
        return pd.DataFrame([{"attack": "fgsm", **row}, {"attack": "pgd:50", **row}])

    def _masking(self) -> pd.DataFrame:
        rows = [
            {"attack": attack, "mask": mask, "masked": count, "draw": 0, "n": self.n, "seed": 0,
             "correct": self.n * last_fit({**MASKS, **self.masks}, f"{mask} {attack}")}
            for mask, count in {**MASKED, **self.masked}.items()
            for attack in (CLEAN, "fgsm", "pgd50", "cw", "aa")
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def _draws(self) -> pd.DataFrame:
        rows = [{"noise": "U(16)", "draw": draw, "correct": self.n * found} for draw, found in enumerate(self.draws)]
        return pd.DataFrame([{"noise": "none", "draw": 0, "correct": 0.0}, *rows]).assign(
            attack="pgd50", n=self.n, seed=0
        )

    def _increments(self, run: str) -> pd.DataFrame:
        s = self.increments.get(run, CONCENTRATED if run == "mep-16" else SPREAD)
        rows = [
            {"node": node, "channel": channel, "step": step, "channels": 16, "positions": 4, "images": 10_000,
             "difference_squared": value * 16 * 4 * (step > 0), "seed": 0}
            for node in "AB" for step in range(11) for channel, value in enumerate(s)
        ]  # fmt: skip
        return pd.DataFrame(rows)
