"""What the claims read: how runs ended, accuracies with intervals, masked accuracies, published numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from coprobe.attacks.examples import CLEAN
from coprobe.paper.claims.record import Estimate, UnmetError
from coprobe.paper.needs import NOISE, Need
from coprobe.paper.published import published_value
from coprobe.paper.results import Results, summary

LABELS = {
    "clean": "clean", "fgsm": "FGSM", "pgd10": "PGD-10", "pgd20": "PGD-20", "pgd50": "PGD-50", "cw": "C&W",
    "apgd_t": "APGD-T", "aa": "AA",
}  # fmt: skip
#: Table 1's marks.
COLLAPSED, STABLE, NOT_CONVERGED = 1, 0, -1
_MARKS = {COLLAPSED: "CO", STABLE: "no CO", NOT_CONVERGED: "did not converge"}


def marks(results: Results, run: str) -> list[int]:
    """How every seed of a run ended."""
    ends = [results.outcome(run, seed) for seed in range(results.seeds_of(run))]
    return [NOT_CONVERGED if not end["converged"] else int(end["collapse_epoch"] is not None) for end in ends]


def all_are(results: Results, run: str, mark: int) -> bool | None:
    """Whether every seed of a run ended like this; None if only some did."""
    alike = {found == mark for found in marks(results, run)}
    return alike.pop() if len(alike) == 1 else None


def ended(results: Results, run: str) -> str:
    """How a run ended, in words."""
    words = [_MARKS[mark] for mark in marks(results, run)]
    return f"{run}: " + ", ".join(dict.fromkeys(words))


def require_collapse(results: Results, *runs: str) -> None:
    """Raise `UnmetError` unless every seed of every run fell into CO (and still classifies clean images)."""
    for run in runs:
        found = marks(results, run)
        if set(found) != {COLLAPSED}:
            raise UnmetError(
                f"the claim is about a collapsed model, but {found.count(COLLAPSED)} of {len(found)} trainings of "
                f"{run} collapsed at this scale ({ended(results, run)})"
            )


def require_stable(results: Results, run: str) -> None:
    """Raise `UnmetError` unless the checkpoint of best PGD-10 of a run is a stable model (seed 0)."""
    kind = results.kind(run, "best")
    if kind != "stable":
        raise UnmetError(f"the claim is about a stable model, but the best checkpoint of {run} is {kind} at this scale")


@dataclass(frozen=True)
class Accuracies:
    """Accuracies of one need."""

    values: dict[tuple[str, str, str], Estimate]

    def __call__(self, attack: str, noise: str = "none", source: str = "") -> Estimate:
        """One of them."""
        return self.values[source, attack, noise]

    @property
    def columns(self) -> list[str]:
        """Clean images and the attacks that this scale has, in the order of the need."""
        return list(dict.fromkeys(attack for _, attack, _ in self.values))

    @property
    def attacks(self) -> list[str]:
        """The same without clean images."""
        return [column for column in self.columns if column != CLEAN]

    def gain(self, attack: str, noise: str = NOISE) -> Estimate:
        """What noise adds."""
        return self(attack, noise) - self(attack)


def accuracies(results: Results, need: Need) -> Accuracies:
    """The accuracies of a need over draws and seeds; raises `MissingResultError`."""
    frame = results.accuracies(
        need.run, need.which, attacks=need.attacks, noises=need.noises, xi=need.xi, sources=need.sources
    )
    return Accuracies(
        {
            (row["source"], row["attack"], row["noise"]): _interval(row, results.seeds_of(need.run))
            for row in frame.to_dict("records")
        }
    )


def masked(results: Results, need: Need) -> tuple[dict[tuple[str, str], Estimate], dict[str, int]]:
    """Accuracies by (mask, attack), and how many channels each mask covers in the first seed."""
    frame = results.get(need)
    values = {}
    for (mask, attack), rows in frame.groupby(["mask", "attack"], sort=False):
        values[str(mask), str(attack)] = _interval(summary(rows), results.seeds_of(need.run))
    counts = frame[frame["seed"] == 0].drop_duplicates("mask").set_index("mask")["masked"]
    return values, {str(mask): int(count) for mask, count in counts.items()}


def _interval(row: Mapping[Any, Any], seeds: int) -> Estimate:
    """Of several seeds a row has one standard deviation; clear is what exceeds two."""
    accuracy, low, high = float(row["accuracy"]), float(row["low"]), float(row["high"])
    times = 2 if seeds > 1 else 1
    return Estimate(
        accuracy, max(0.0, accuracy - times * (accuracy - low)), min(1.0, accuracy + times * (high - accuracy))
    )


def at_hand(results: Results, runs: Iterable[str]) -> list[str]:
    """Those of the runs whose images this scale has."""
    return [run for run in runs if run in results.runs]


def cells(table: int, metrics: Iterable[str], **keys: str | float | None) -> str:
    """What a table of the paper prints for these metrics, in its order of columns: `58.48 / 61.65`."""
    values = [published_value(table, metric=metric, **keys) for metric in metrics]
    return " / ".join("–" if value is None else f"{value:.2f}" for value in values)
