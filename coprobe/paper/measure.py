"""Measures what the plan needs of a trained run, one attack at a time, each kept as soon as it is known."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import pandas as pd
import torch

from coprobe.attacks.examples import CLEAN
from coprobe.checkpoint import Checkpoint, load
from coprobe.core import results as store
from coprobe.core.defaults import PROBING_ATTACK
from coprobe.core.provenance import provenance
from coprobe.core.results import DamagedError
from coprobe.data import Dataset
from coprobe.data import load as load_data
from coprobe.errors import InputError
from coprobe.figures import fig04
from coprobe.metrics.accuracy import Noise
from coprobe.paper.needs import Need, merged
from coprobe.paper.results import Results
from coprobe.paper.runs import RUNS, Scale
from coprobe.probe import Probe

#: Draws of every noise.
DRAWS = 5
#: Where the increments of Fig. 10 are taken, and the attacks whose salient channels are compared (C07).
INCREMENT_NODES = ("A", "B")
OVERLAP_ATTACKS = (PROBING_ATTACK, "fgsm", "pgd:50")


def noise_of(written: str, scale: Scale) -> Noise:
    """The noise that the paper writes as "none", "U(16)" or "Gauss(10)", at a scale."""
    kind, _, amount = written.rstrip(")").partition("(")
    if kind == "none":
        return Noise()
    name = {"U": "uniform", "Gauss": "gauss"}[kind]
    return Noise.parse(f"{name}:{scale.budget(float(amount)):g}")


def due(results: Results, needs: Sequence[Need], run: str, seed: int, *, repair: bool = False) -> list[Need]:
    """The needs of a trained run, each at the checkpoint that it is of, that can be measured and are not complete yet.

    Raises:
        DamagedError: a result was changed since it was written; with `repair` it is due.
    """
    here = [need.on(results.which(run, need.which, seed)) for need in needs if need.run == run]
    return [need for need in merged(here) if _is_due(results, need, seed, repair)]


def _is_due(results: Results, need: Need, seed: int, repair: bool) -> bool:
    if any(results.is_lost(name, seed) for name in (need.run, *need.sources)):
        return False  # there is no checkpoint, and never will be
    try:
        return bool(results.missing(need, seed))
    except DamagedError:
        if repair:
            return True
        raise


@dataclass
class Measurer:
    """Measures one run.

    Args:
        results: where results are looked up and kept.
        run: its name.
        seed: which of its trainings.
        device: where to measure.
    """

    results: Results
    run: str
    seed: int
    device: torch.device

    def measure(self, need: Need) -> None:
        """Measure what is missing of a need of this run."""
        if need.kind in ("accuracy", "transfer"):
            for source, attack in self.results.missing(need, self.seed):
                began = time.perf_counter()
                rows = self._accuracy(need, source, attack)
                self._write(need, self._among(need, rows), began)
            return
        kinds: dict[str, Callable[[Need], pd.DataFrame]] = {
            "channels": lambda need: self._probe(need).activations().frame,
            "increments": lambda need: self._probe(need).increments(INCREMENT_NODES).frame,
            "overlap": self._overlap,
            "masking": self._masking,
        }
        began = time.perf_counter()
        self._write(need, kinds[need.kind](need), began)

    def _write(self, need: Need, frame: pd.DataFrame, began: float) -> None:
        facts = provenance(seconds=round(time.perf_counter() - began, 3), **self._probe(need).facts)
        store.write(self.results.path(need, self.seed), frame, self.results.key(need, self.seed), facts)

    def _among(self, need: Need, rows: pd.DataFrame) -> pd.DataFrame:
        """New rows in the place of older ones like them, among all the others, in the need's order."""
        before = self.results.find(need, self.seed)
        if before is None:
            return rows
        before = before.fillna({"source": "", "source_weights": ""})
        new = set(_units(rows))
        kept = [unit not in new for unit in _units(before)]
        frame = pd.concat([before[kept], rows], ignore_index=True)
        units = product(need.sources or ("",), self.results.attacks(need), need.noises)
        places = {unit: place for place, unit in enumerate(units)}
        order = [places.get(unit, len(places)) for unit in _units(frame)]
        return frame.iloc[sorted(range(len(frame)), key=order.__getitem__)]

    def _accuracy(self, need: Need, source: str, attack: str) -> pd.DataFrame:
        """Rows (source, source_weights, attack, spec, noise, draw, n, correct) of one attack under all noises."""
        noises = {noise_of(noise, self.results.scale).spec: noise for noise in need.noises}
        amounts = [Noise.parse(spec) for spec in noises]
        spec = self.results.spec(attack)
        attacks = () if spec in (CLEAN, None) else (spec,)
        if source:
            crafting = self._probe_of(self._load(source, "best"), need.xi)
            target = self._load(self.run, need.which)
            frame = crafting.transfer([target], attacks, amounts, noise_draws=DRAWS).frame
            frame = frame[frame["target"] == str(target.path)]
        else:
            frame = self._probe(need).evaluate(attacks, amounts, noise_draws=DRAWS).frame
        if attack != CLEAN:
            frame = frame[frame["attack"] != CLEAN]
        rows = frame.assign(
            source=source,
            source_weights=self.results.source_digest(source, self.seed),
            attack=attack,
            spec=self.results.identity(attack),
            noise=frame["noise"].map(noises),
        )
        rows = rows.rename(columns={"draw": "mask_draw", "noise_draw": "draw"})
        return rows[["source", "source_weights", "attack", "spec", "noise", "draw", "n", "correct"]]

    def _masking(self, need: Need) -> pd.DataFrame:
        """Rows (attack, mask, masked, draw, n, correct) of Fig. 4."""
        columns = {spec: attack for attack in need.attacks if (spec := self.results.spec(attack))}
        masking = self._probe(need).mask("A", fig04.ALPHA2, compare=fig04.COMPARED, attacks=tuple(columns))
        frame = masking.evaluation.frame
        frame = frame.assign(attack=frame["attack"].map({CLEAN: CLEAN, **columns}))
        return frame[["attack", "mask", "masked", "draw", "n", "correct"]]

    def _overlap(self, need: Need) -> pd.DataFrame:
        return pd.concat([self._probe(need).overlap("A", attack) for attack in OVERLAP_ATTACKS], ignore_index=True)

    def _probe(self, need: Need) -> Probe:
        return self._probe_of(self._load(self.run, need.which), need.xi)

    def _probe_of(self, checkpoint: Checkpoint, xi: float) -> Probe:
        return Probe(
            checkpoint, self._images, epsilon=self.results.scale.budget(xi) / 255, device=self.device, seed=self.seed
        )

    def _load(self, run: str, which: str) -> Checkpoint:
        path = self.results.weights_of(run, which, self.seed)
        if path is None:
            raise InputError(f"{run}: its weights are gone since this was planned; the same command trains it again")
        return load(path)

    @cached_property
    def _images(self) -> Dataset:
        data = {"cifar100": "cifar100", **self.results.data}[RUNS[self.run].data]
        return load_data(data, "test", limit=self.results.scale.images)


def _units(rows: pd.DataFrame) -> list[tuple[str, str, str]]:
    return list(rows[["source", "attack", "noise"]].itertuples(index=False, name=None))
