"""What has been measured at one scale: read from run directories, never computed here."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from coprobe.attacks import parse
from coprobe.attacks.examples import CLEAN
from coprobe.attacks.labels import label_of
from coprobe.core import results as store
from coprobe.core.defaults import PROBING_ATTACK
from coprobe.core.files import write_json, write_table
from coprobe.errors import InputError
from coprobe.metrics import Accuracy, ActivationIncrements, ChannelActivations, ChannelStatistics, Metric
from coprobe.metrics.accuracy import wilson
from coprobe.metrics.overlap import ChannelOverlap
from coprobe.paper.needs import COLUMNS, XI, Need
from coprobe.paper.runs import RUNS, Scale
from coprobe.training.recipe import Recipe
from coprobe.training.run import Run
from coprobe.verdict.rule import collapse_epoch, verdict_of

#: What is measured for each kind of need.
_METRICS: dict[str, type[Metric[Any]]] = {
    "accuracy": Accuracy,
    "transfer": Accuracy,
    "masking": Accuracy,
    "channels": ChannelActivations,
    "increments": ActivationIncrements,
    "overlap": ChannelOverlap,
}


class MissingResultError(InputError):
    """A result that has not been measured yet."""


@dataclass(frozen=True)
class Results:
    """The runs of the paper's plan in a directory, at one scale.

    Args:
        directory: holds a run directory per run (`NAME`, and `NAME-s1` … for further seeds).
        scale: how large they are.
        data: what the paper's data sets are read from; those of the scale by default.
        seeds: how many times every run is trained; as often as the scale says by default.
        weights: where runs are trained and their weights are, in directories of the same names; they can be lost, since
            what is needed of them is trained again. The directory itself by default.

    Raises:
        InputError: the directory holds the runs of another scale.
    """

    directory: Path
    scale: Scale
    data: Mapping[str, str] = field(default_factory=dict)
    seeds: int | None = None
    weights: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", {**self.scale.data, **self.data})
        marked = self._marked()
        if marked not in (None, self.scale.name):
            raise InputError(
                f"{self.directory}: holds runs of scale {marked}, not {self.scale.name}; name another --runs"
            )

    @property
    def _mark(self) -> Path:
        return self.directory / "scale.json"

    def _marked(self) -> str | None:
        try:
            return str(json.loads(self._mark.read_text(encoding="utf-8"))["scale"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{self._mark}: can't be read; delete it if you know the scale of these runs") from None

    def mark(self) -> None:
        """Note in the directory of which scale its runs are."""
        if self._marked() is None:
            write_json(self._mark, {"scale": self.scale.name})

    @property
    def runs(self) -> list[str]:
        """The names of the runs whose images are at hand."""
        return [name for name, run in RUNS.items() if run.data in self.data]

    def recipe(self, name: str, seed: int = 0) -> Recipe:
        """The recipe that the plan has for a run."""
        return RUNS[name].recipe(self.scale, {"cifar100": "cifar100", **self.data}, seed)

    def seeds_of(self, name: str) -> int:
        """How many times a run is trained."""
        return self.seeds or self.scale.seeds.get(name, 1)

    def seeds_shown(self, names: Iterable[str]) -> str:
        """How many times these runs are trained, as captions say it."""
        counts = sorted({self.seeds_of(name) for name in names} or {1})
        if counts[-1] == 1:
            return "seed 0"
        return f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else f"{counts[0]} seeds"

    def run(self, name: str, seed: int = 0) -> Run:
        """The directory of a run's results."""
        return Run(self.directory / directory_of(name, seed))

    def workplace(self, name: str, seed: int = 0) -> Run:
        """The directory in which a run is trained, with its weights."""
        return Run((self.weights or self.directory) / directory_of(name, seed))

    def weights_of(self, name: str, which: str, seed: int = 0) -> Path | None:
        """The checkpoint `last` or `best` that the results of a run are of; None where it is lost."""
        there = self.workplace(name, seed)
        path = there.best if which == "best" else there.checkpoint
        ours = there.begun and there.outcome is not None and there.digests == self.run(name, seed).digests
        return path if ours and path.exists() else None

    def publish(self, name: str, seed: int = 0) -> None:
        """Take over recipe and history of a finished run from where it was trained, unless its weights are the same."""
        there, here = self.workplace(name, seed), self.run(name, seed)
        if there.directory == here.directory or (here.begun and here.digests == there.digests):
            return
        if (there.directory / "history.csv").exists():
            write_table(there.history, here.directory / "history.csv")
        write_json(here.directory / "recipe.json", there.about())

    def is_planned(self, name: str, seed: int = 0, run: Run | None = None) -> bool:
        """Whether a run, if it is there, has the recipe that the plan has for it; that of its results by default."""
        run = run or self.run(name, seed)
        return not run.begun or not self._differences(name, seed, run)

    def _differences(self, name: str, seed: int, run: Run) -> list[str]:
        try:
            begun = run.recipe
        except InputError:
            return ["no readable recipe.json"]
        return _placeless(self.recipe(name, seed)).differences(_placeless(begun))

    def is_trained(self, name: str, seed: int = 0) -> bool:
        """Whether a run is there and finished; `InputError` if it is there with another recipe."""
        run = self.run(name, seed)
        if not run.begun:
            return False
        differences = self._differences(name, seed, run)
        if differences:
            raise InputError(
                f"{run.directory}: is not the run that the plan has ({', '.join(differences[:3])}); "
                "name another --runs, or pass --repair to train it again"
            )
        return run.outcome is not None

    def outcome(self, name: str, seed: int = 0) -> dict[str, Any]:
        """How a run ended (see `Run.outcome`), by today's rule of a collapse; `MissingResultError` before it has."""
        if name not in self.runs:
            raise MissingResultError(f"run {name} is not part of scale {self.scale.name}")
        outcome = self.run(name, seed).outcome if self.is_trained(name, seed) else None
        if outcome is None:
            raise MissingResultError(f"run {name} is not trained; {self.remedy}")
        rows = self.run(name, seed).history.to_dict("records") if outcome["epochs"] else []
        return {**outcome, "collapse_epoch": collapse_epoch(rows)}

    def is_lost(self, name: str, seed: int = 0) -> bool:
        """Whether a run diverged in its first epoch, and left neither history nor checkpoint."""
        outcome = self.run(name, seed).outcome
        return outcome is not None and outcome["epochs"] == 0

    def _refuse_lost(self, name: str, seed: int) -> None:
        if self.is_lost(name, seed):
            raise MissingResultError(f"run {name} diverged in its first epoch: there is nothing to show of it")

    def check_images(self) -> None:
        """Raise `InputError` if the trained runs were trained on different images."""
        first: dict[str, tuple[str, str]] = {}
        for name in self.runs:
            run = self.run(name)
            if not (run.begun and self.is_planned(name)):
                continue  # `is_trained` refuses it, unless it is to be repaired
            digest = run.about().get("provenance", {}).get("data_digest")
            if digest is None:
                continue
            other, expected = first.setdefault(RUNS[name].data, (name, digest))
            if digest != expected:
                raise InputError(
                    f"{self.directory}: {name} and {other} were trained on different images; name another --runs"
                )

    def history(self, name: str) -> pd.DataFrame:
        """history.csv of every seed of a run, with a column `seed`."""
        for seed in range(self.seeds_of(name)):
            self.outcome(name, seed)
            self._refuse_lost(name, seed)
        parts = [self.run(name, seed).history.assign(seed=seed) for seed in range(self.seeds_of(name))]
        return pd.concat(parts, ignore_index=True)

    def which(self, name: str, which: str, seed: int = 0) -> str:
        """`last` where the best checkpoint of a run is its last one, else `which`."""
        outcome = self.outcome(name, seed)
        return "last" if outcome["best_epoch"] == outcome["epochs"] else which

    def kind(self, name: str, which: str = "last") -> str:
        """What kind of model a checkpoint is, by how it was trained and what its accuracies were then (seed 0)."""
        recipe, outcome = self.recipe(name), self.outcome(name)
        if recipe.method == "clean":
            return "clean-trained"
        if recipe.method == "noise" or recipe.noise != "none":
            return "noise-trained"
        if which == "last" and outcome["collapse_epoch"] is not None and outcome["converged"]:
            return "CO-affected"
        if self.is_lost(name):
            return "did not converge"
        epoch = outcome["best_epoch"] if which == "best" else outcome["epochs"]
        row = self.run(name).history.set_index("epoch").loc[epoch]
        classes = 100 if RUNS[name].data == "cifar100" else 10
        return verdict_of(row["clean"], row["fgsm"], row["pgd10"], classes)

    def spec(self, attack: str) -> str | None:
        """The attack in a column of the paper at this scale, None if there is none; any other name is a spec."""
        return self.scale.attacks.get(attack) if attack in COLUMNS else attack

    def attacks(self, need: Need) -> tuple[str, ...]:
        """The attacks of a need that this scale has, clean images first."""
        return (CLEAN, *(attack for attack in need.attacks if self.spec(attack)))

    def path(self, need: Need, seed: int = 0) -> Path:
        """The file of a need."""
        return self.run(need.run, seed).directory / "stats" / need.file

    def key(self, need: Need, seed: int = 0) -> str:
        """What the file of a need is of. Attacks on accuracy, noises and sources are its rows, so that it can grow."""
        scale = {"name": self.scale.name, "stretch": self.scale.stretch, "images": self.scale.images}
        facts = {"kind": need.kind, "which": need.which, "xi": float(need.xi), "scale": scale}
        digest = self.run(need.run, seed).digests.get(need.which)
        # runs of before their digests were kept
        facts |= {"weights": digest} if digest else {"recipe": _placeless(self.recipe(need.run, seed)).to_dict()}
        if need.kind == "masking":
            facts["attacks"] = [self.identity(attack) for attack in self.attacks(need)]
        metric, probing = _METRICS[need.kind], parse(PROBING_ATTACK, 0)
        versions = {metric.name: metric.version}
        if need.kind not in ("accuracy", "transfer"):  # whose attacks are rows
            versions[probing.name] = probing.version
        if changed := {name: version for name, version in versions.items() if version > 1}:
            facts["versions"] = changed
        return store.key_of(**facts)

    def identity(self, attack: str) -> str | None:
        """What an attack's rows are of: its spec, with the version of what it computes once that has changed."""
        spec = self.spec(attack)
        if spec in (None, CLEAN):
            return spec
        version = parse(spec, 0).version
        return spec if version == 1 else f"{spec} (version {version})"

    def source_digest(self, source: str, seed: int = 0) -> str:
        """Which weights a source of transferred images has; empty for none, and where that is not known."""
        if not source or not self.is_trained(source, seed):
            return ""
        return self.run(source, seed).digests.get(self.which(source, "best", seed), "")

    def find(self, need: Need, seed: int = 0) -> pd.DataFrame | None:
        """What was measured for a need so far; None if nothing was; `DamagedError` for a damaged file."""
        return store.read(self.path(need, seed), self.key(need, seed))

    def missing(self, need: Need, seed: int = 0) -> list[tuple[str, str]]:
        """The (source, attack) of a need that are not measured under all its noises; its kind alone if it has none."""
        return [] if need.kind == "history" else self._lacking(need, self.find(need, seed), seed)

    def _lacking(self, need: Need, found: pd.DataFrame | None, seed: int) -> list[tuple[str, str]]:
        """What `missing` says where this was found."""
        if need.kind not in ("accuracy", "transfer"):
            masked = self.attacks(need) if need.kind == "masking" else ()
            return [] if found is not None and {*masked} <= {*found.get("attack", ())} else [("", need.kind)]
        wanted = [(source, attack) for source in need.sources or ("",) for attack in self.attacks(need)]
        if found is None:
            return wanted
        if "source_weights" not in found:  # as in results of before they were kept
            found = found.assign(source_weights="")
        rows = found.fillna({"source": "", "source_weights": ""})
        columns = ["source", "source_weights", "attack", "spec", "noise"]
        there = set(rows[columns].itertuples(index=False, name=None))
        digests = {source: self.source_digest(source, seed) for source in need.sources or ("",)}
        return [
            (source, attack)
            for source, attack in wanted
            if not all(
                (source, digests[source], attack, self.identity(attack), noise) in there for noise in need.noises
            )
        ]

    def get(self, need: Need) -> pd.DataFrame:
        """The result of a need, every seed, with a column `seed`.

        Raises:
            MissingResultError: some of it is not measured yet.
            DamagedError: a file was changed since it was written.
        """
        parts = []
        for seed in range(self.seeds_of(need.run)):
            here = need.on(self.which(need.run, need.which, seed))
            for name in (need.run, *need.sources):
                self._refuse_lost(name, seed)
            found = self.find(here, seed)
            if found is None or self._lacking(here, found, seed):
                raise MissingResultError(
                    f"{need.kind} of run {need.run} ({here.which} checkpoint, {need.xi:g}/255) is not measured; "
                    + self.remedy
                )
            parts.append(found.assign(seed=seed))
        return pd.concat(parts, ignore_index=True)

    def accuracies(
        self,
        run: str,
        which: str = "last",
        *,
        attacks: tuple[str, ...] = (),
        noises: tuple[str, ...] = ("none",),
        xi: float = XI,
        sources: tuple[str, ...] = (),
    ) -> pd.DataFrame:
        """Accuracies of a checkpoint, clean images first, a row per (source, attack, noise), over draws and seeds.

        Columns: source, attack (a column of the paper), label (as people read it), noise, n, correct, accuracy, low,
        high (95 % Wilson; with several seeds the mean and its standard deviation), spread (standard deviation over
        the draws of the noise, NaN without draws).

        Args:
            run: its name.
            which: `last` or `best`.
            xi: ξ_E, n of n/255.
            attacks: columns of the paper or specs; a column that the scale does not have is left out.
            noises: as the paper writes them.
            sources: runs on which the images were crafted; none for the model itself.
        """
        need = Need(run, "transfer" if sources else "accuracy", which, xi, attacks, noises, sources)
        frame = self.get(need).fillna({"source": ""})
        found = dict(iter(frame.groupby(["source", "attack", "noise"])))
        rows = []
        for source in sources or ("",):
            for attack in self.attacks(need):
                for noise in noises:
                    about = {"source": source, "attack": attack, "label": self.label(attack), "noise": noise}
                    rows.append({**about, **summary(found[source, attack, noise])})
        return pd.DataFrame(rows)

    def label(self, attack: str) -> str:
        """An attack as people read it (PGD-50); `InputError` for a column that the scale does not have."""
        spec = self.spec(attack)
        if spec is None:
            raise InputError(f"scale {self.scale.name} has no attack in the column {attack}")
        return label_of(spec)

    def channels(self, run: str, which: str = "last") -> ChannelStatistics:
        """The channel statistics of a checkpoint (seed 0) at A…E under PGD-10 without the stop rule at 16/255."""
        frame = self.get(Need(run, "channels", which))
        return ChannelStatistics(frame[frame["seed"] == 0].drop(columns="seed"))

    @property
    def remedy(self) -> str:
        """What to do about a result that is missing, the end of a sentence."""
        usual = self.directory == self.scale.directory
        where = "" if usual else f" --runs {shlex.quote(str(self.directory))}"
        return f"'coprobe paper --scale {self.scale.name}{where}' makes it"


def directory_of(name: str, seed: int) -> str:
    """What the directory of a run is called."""
    return name if seed == 0 else f"{name}-s{seed}"


def _placeless(recipe: Recipe) -> Recipe:
    """A recipe without what differs from machine to machine: where its images lie, and whether bfloat16 is fast."""
    return dataclasses.replace(recipe, data="", init=None, precision="32")


def summary(rows: pd.DataFrame) -> dict[str, float]:
    """Accuracy of rows (seed, draw, n, correct) with its interval."""
    n = int(rows["n"].iloc[0])
    per_seed = rows.groupby("seed")["correct"].mean() / n
    accuracy = float(per_seed.mean())
    if len(per_seed) > 1:
        low, high = max(0.0, accuracy - per_seed.std()), min(1.0, accuracy + per_seed.std())
    else:
        low, high = wilson(accuracy * n, n)
    spread = float((rows[rows["seed"] == 0]["correct"] / n).std())
    return {"n": n, "correct": accuracy * n, "accuracy": accuracy, "low": low, "high": high, "spread": spread}
