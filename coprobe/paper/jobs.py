"""The work of the plan in jobs that any engine can do: train a run, measure a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from coprobe.attacks import parse
from coprobe.attacks.base import ATTACKS
from coprobe.core.engine import has_fast_bf16
from coprobe.core.files import exclusive, sweep
from coprobe.core.results import DamagedError, provenance_of
from coprobe.errors import DivergedError
from coprobe.paper.measure import DRAWS, Measurer, due
from coprobe.paper.needs import Need, merged
from coprobe.paper.results import Results
from coprobe.paper.runs import Scale
from coprobe.training import METHODS
from coprobe.training.recipe import Recipe

#: Training images of CIFAR; a fifth as many are test images.
_ALL_IMAGES = 50_000
#: The most of a training that is lost when its process is killed.
_SAVE_MINUTES = 1.0


@dataclass(frozen=True)
class Order:
    """What is to be made, in plain values, so that it can be sent to another process or machine.

    Args:
        directory: of the runs.
        scale: how large.
        needs: what is to be measured.
        data: see `Results`.
        seeds: see `Results`.
        device: where to train and measure.
        weights: see `Results`.
        repair: make damaged results and runs of another recipe again, instead of refusing them.
    """

    directory: Path
    scale: Scale
    needs: tuple[Need, ...]
    data: Mapping[str, str] = field(default_factory=dict)
    seeds: int | None = None
    weights: Path | None = None
    device: str = "cpu"
    repair: bool = False

    @cached_property
    def results(self) -> Results:
        """The results of these runs so far."""
        return Results(self.directory, self.scale, self.data, self.seeds, self.weights)

    def is_trained(self, run: str, seed: int) -> bool:
        """Whether a run is there and finished; one of another recipe is refused, or not there if it is repaired."""
        if self.repair and not self.results.is_planned(run, seed):
            return False
        return self.results.is_trained(run, seed)

    def has_weights(self, run: str, seed: int) -> bool:
        """Whether what a trained run left is at hand, to be measured; nothing is where it diverged at once."""
        results = self.results
        return results.is_lost(run, seed) or all(results.weights_of(run, which, seed) for which in ("last", "best"))

    def is_measured(self, need: Need, seed: int) -> bool:
        """Whether nothing is left to measure for a need."""
        return self.is_trained(need.run, seed) and not due(self.results, [need], need.run, seed, repair=self.repair)


@dataclass(frozen=True)
class Job:
    """A part of the work on one run.

    Attributes:
        kind: `train`, `measure`, or `transfer`, which needs other runs too.
        run: name of the run.
        seed: which of its trainings.
        after: names of the jobs that come first.
        passes: about how many forward and backward passes of one image it takes.
    """

    kind: str
    run: str
    seed: int
    after: tuple[str, ...] = ()
    passes: float = 0.0

    @property
    def name(self) -> str:
        """For example "train mep-12"."""
        return _name(self.kind, self.run, self.seed)


def _name(kind: str, run: str, seed: int) -> str:
    return f"{kind} {run}" + (f" (seed {seed})" if seed else "")


def plan_jobs(order: Order) -> list[Job]:
    """What is still to do, in the order of the plan; raises `InputError` for runs of other recipes or other images."""
    order.results.check_images()
    wanted = {need.run for need in order.needs} | {source for need in order.needs for source in need.sources}
    places = [(run, seed) for run in order.results.runs if run in wanted for seed in range(order.results.seeds_of(run))]
    trained = {place: order.is_trained(*place) for place in places}
    left = {
        (kind, *place): needs
        for place in places
        for kind in ("measure", "transfer")
        if (needs := _missing(order, kind, *place, trained=trained[place]))
    }
    # weights that are lost are needed for what is still to be measured
    needed = {(name, seed) for (_, run, seed), needs in left.items() for name in (run, *_sources(needs))}
    found: dict[str, Job] = {}
    for run, seed in places:
        if not trained[run, seed] or ((run, seed) in needed and not order.has_weights(run, seed)):
            job = Job("train", run, seed, passes=_training(order.results.recipe(run, seed)))
            found[job.name] = job
    jobs: list[Job] = []
    for run, seed in places:
        own = _name("train", run, seed)
        if own in found:
            jobs.append(found[own])
        for kind in ("measure", "transfer"):
            if needs := left.get((kind, run, seed), []):
                before = [own, *(_name("train", source, seed) for source in _sources(needs))]
                # one at a time in a directory: two would wait for each other there
                same = [job.name for job in jobs if (job.run, job.seed, job.kind) == (run, seed, "measure")]
                after = (*(name for name in dict.fromkeys(before) if name in found), *same)
                jobs.append(Job(kind, run, seed, after, sum(_measuring(order, need) for need in needs)))
    return jobs


def _sources(needs: Iterable[Need]) -> list[str]:
    return list(dict.fromkeys(source for need in needs for source in need.sources))


def execute(job: Job, order: Order) -> None:
    """Do a job; raises what training and measuring raise."""
    import torch

    results = order.results
    with exclusive(results.workplace(job.run, job.seed).directory):
        if job.kind == "train":
            if not (order.is_trained(job.run, job.seed) and order.has_weights(job.run, job.seed)):
                _train(order, job)
                results.publish(job.run, job.seed)
            return
        sweep(results.run(job.run, job.seed).directory / "stats")
        measurer = Measurer(results, job.run, job.seed, torch.device(order.device))
        for need in _missing(order, job.kind, job.run, job.seed, trained=True):
            if order.repair:
                _repair(results, need, job.seed)
            measurer.measure(need)


def _train(order: Order, job: Job) -> None:
    from coprobe.training import train

    results = order.results
    recipe, run = results.recipe(job.run, job.seed), results.workplace(job.run, job.seed)
    other = run.begun and not results.is_planned(job.run, job.seed, run)
    anew = other or (run.outcome is not None and not (run.checkpoint.exists() and run.best.exists()))
    begun = run.begun and not anew
    recipe = replace(recipe, precision=run.recipe.precision if begun else precision_on(recipe, order.device))
    try:
        train(recipe, run.directory, device=order.device, overwrite=anew, resume=not anew, save_minutes=_SAVE_MINUTES)
    except DivergedError:
        run.give_up()


def precision_on(recipe: Recipe, device: str) -> str:
    """The precision that a run is trained in there: bfloat16, where the recipe has it, only where it is fast."""
    return "32" if recipe.precision == "bf16" and not has_fast_bf16(device) else recipe.precision


def _missing(order: Order, kind: str, run: str, seed: int, *, trained: bool) -> list[Need]:
    """What a job of this kind has to measure of a run."""
    needs = [need for need in order.needs if need.run == run and _measured_by(kind, need)]
    return due(order.results, needs, run, seed, repair=order.repair) if trained else merged(needs)


def _measured_by(kind: str, need: Need) -> bool:
    return need.kind != "history" and (need.kind == "transfer") == (kind == "transfer")


def _repair(results: Results, need: Need, seed: int) -> None:
    """Remove a damaged result, so that it is missing."""
    try:
        results.find(need, seed)
    except DamagedError:
        results.path(need, seed).unlink()
        provenance_of(results.path(need, seed)).unlink(missing_ok=True)


def _training(recipe: Recipe) -> float:
    """Passes of a training: FGSM takes two per image, PGD-10 with clean and FGSM images twelve to measure."""
    images = recipe.limit_train or _ALL_IMAGES
    radii = 2 if recipe.eps_also not in (0, recipe.eps_train) else 1
    cost = float(METHODS.entry(recipe.method).facts["cost"])
    return recipe.epochs * (2 * cost * images + 12 * radii * recipe.images_held_out(_ALL_IMAGES))


def _measuring(order: Order, need: Need) -> float:
    """Passes of a measurement, at most: images that are misclassified leave most attacks early."""
    results = order.results
    images = results.scale.images or _ALL_IMAGES // 5
    if need.kind in ("channels", "increments"):
        return 12.0 * images
    specs = [spec for attack in results.attacks(need)[1:] if (spec := results.spec(attack))]
    crafted = sum(_cost(spec) for spec in specs) + (70 if need.kind == "overlap" else 0)
    looks = len(need.noises) * DRAWS / 3 * (len(specs) + 1)
    return images * (crafted + looks) * max(1, len(need.sources))


def _cost(spec: str) -> float:
    """Passes of an attack per image."""
    attack = parse(spec, 0)
    steps = getattr(attack, "iterations", None)
    if steps is None:
        return float(ATTACKS.entry(attack.name).facts["cost"])
    return float(steps * getattr(attack, "restarts", 1) * getattr(attack, "samples", 1))
