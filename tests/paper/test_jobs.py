"""What is planned, in which order, and what is done of it."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from coprobe.core import results as store
from coprobe.errors import InputError
from coprobe.paper import jobs
from coprobe.paper.jobs import Job, Order, execute, plan_jobs
from coprobe.paper.needs import Need
from coprobe.paper.results import Results
from coprobe.paper.runs import RUNS, SCALES
from coprobe.training import Run
from coprobe.training.loop import TrainingLoop
from tests.paper.tiny import TINY, do, files, order_for

ACCURACY = Need("mep-12", "accuracy", "last", 16, ("fgsm",))
TRANSFER = Need("mep-12", "transfer", "last", 16, ("fgsm",), sources=("cs-8", "cs-12"))


def names(order: Order) -> list[str]:
    return [job.name for job in plan_jobs(order)]


def test_everything_is_planned_in_the_order_of_the_runs(tmp_path: Path) -> None:
    needs = [Need("co-10-8", "history"), TRANSFER, Need("origin", "channels"), ACCURACY]
    jobs = plan_jobs(order_for(tmp_path, needs))
    assert [(job.name, job.after) for job in jobs] == [
        ("train mep-12", ()),
        ("measure mep-12", ("train mep-12",)),
        ("transfer mep-12", ("train mep-12", "train cs-8", "train cs-12", "measure mep-12")),
        ("train origin", ()),
        ("measure origin", ("train origin",)),
        ("train co-10-8", ()),
        ("train cs-8", ()),
        ("train cs-12", ()),
    ]
    assert all(job.passes > 0 for job in jobs)


def test_seeds_are_runs_of_their_own(tmp_path: Path) -> None:
    jobs = plan_jobs(order_for(tmp_path, [replace(TRANSFER, sources=("cs-8",))], seeds=2))
    assert [job.name for job in jobs] == [
        "train mep-12", "transfer mep-12", "train mep-12 (seed 1)", "transfer mep-12 (seed 1)",
        "train cs-8", "train cs-8 (seed 1)",
    ]  # fmt: skip
    assert jobs[3].after == ("train mep-12 (seed 1)", "train cs-8 (seed 1)")


@pytest.mark.slow
def test_what_is_there_is_not_planned(trained: Path) -> None:
    order = order_for(trained, [ACCURACY, TRANSFER])
    jobs = {job.name: job.after for job in plan_jobs(order)}
    assert jobs == {"measure mep-12": (), "transfer mep-12": ("train cs-12", "measure mep-12"), "train cs-12": ()}
    assert do(replace(order, needs=(ACCURACY,))) == ["measure mep-12"]
    assert names(replace(order, needs=(ACCURACY,))) == []
    assert names(replace(order, needs=(replace(ACCURACY, attacks=("fgsm", "pgd10")),))) == ["measure mep-12"]


def test_what_is_trained_and_measured(trained: Path) -> None:
    order = order_for(trained, [ACCURACY])
    assert order.is_trained("mep-12", 0) and not order.is_trained("mep-16", 0)
    assert not order.is_measured(ACCURACY, 0) and not order.is_measured(replace(ACCURACY, run="mep-16"), 0)
    do(order)
    assert order.is_measured(ACCURACY, 0)


def test_longer_trainings_and_more_attacks_take_more_passes(tmp_path: Path) -> None:
    def passes(need: Need, **knobs: object) -> dict[str, float]:
        scale = replace(TINY, knobs={**TINY.knobs, **knobs})
        return {job.kind: job.passes for job in plan_jobs(Order(tmp_path, scale, (need,)))}

    usual, longer = passes(ACCURACY), passes(replace(ACCURACY, attacks=("fgsm", "pgd10")), epochs=4)
    # FGSM: two passes; clean, FGSM and PGD-10 at two radii: 24
    assert usual["train"] == 2 * (2 * 20 + 24 * 10) and longer["train"] == 2 * usual["train"]
    assert longer["measure"] > usual["measure"]
    assert passes(TRANSFER)["transfer"] > passes(replace(TRANSFER, sources=("cs-8",)))["transfer"]


def test_the_passes_of_every_run_and_attack_are_known(tmp_path: Path) -> None:
    for scale in SCALES.values():
        needs = [Need(name, "accuracy", attacks=tuple(scale.attacks)) for name in RUNS]
        jobs = plan_jobs(Order(tmp_path, scale, tuple(needs)))
        trainings = (66 if scale.name == "paper" else 57) + sum(seeds - 1 for seeds in scale.seeds.values())
        assert len(jobs) == 2 * trainings and all(job.passes > 0 for job in jobs)


def test_a_job_that_was_done_in_the_meantime_is_not_done_again(trained: Path) -> None:
    order = order_for(trained, [ACCURACY])
    before = (trained / "mep-12" / "checkpoint.pt").stat().st_mtime_ns
    execute(Job("train", "mep-12", 0), order)
    assert (trained / "mep-12" / "checkpoint.pt").stat().st_mtime_ns == before


def test_an_order_can_be_sent_after_it_was_looked_at(trained: Path) -> None:
    order = order_for(trained, [ACCURACY])
    assert names(pickle.loads(pickle.dumps(order))) == names(order)
    assert order.results is order.results


def test_what_killed_processes_left_half_written_goes(trained: Path) -> None:
    stats = trained / "mep-12" / "stats"
    stats.mkdir()
    (stats / ".1-abc.tmp.csv").write_text("half")
    do(order_for(trained, [ACCURACY]))
    assert sorted(path.name for path in stats.iterdir()) == ["accuracy-last-16.csv", "accuracy-last-16.provenance.json"]


def test_repair_makes_damaged_results_again_and_planning_leaves_them(trained: Path) -> None:
    order = order_for(trained, [ACCURACY, Need("mep-12", "channels")])
    do(order)
    whole = files(trained)
    path = order.results.path(ACCURACY)
    path.write_text("damaged")
    with pytest.raises(store.DamagedError, match=r"accuracy-last-16\.csv: damaged result"):
        plan_jobs(order)
    repairing = replace(order, repair=True)
    assert names(repairing) == ["measure mep-12"] and path.read_text() == "damaged"
    assert not repairing.is_measured(ACCURACY, 0)
    do(repairing)
    assert files(trained) == whole and names(order) == names(repairing) == []


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["another recipe", "no recipe"])
def test_repair_trains_runs_of_another_recipe_again(trained: Path, damage: str) -> None:
    order = order_for(trained, [ACCURACY])
    do(order)
    whole = files(trained / "mep-12")
    recipe = trained / "mep-12" / "recipe.json"
    text = recipe.read_text()
    recipe.write_text(text.replace('"lr": 0.05', '"lr": 0.5') if damage == "another recipe" else text[:50])
    (trained / "mep-12" / "history.csv").write_text("epoch")
    with pytest.raises(InputError, match="is not the run that the plan has"):
        plan_jobs(order)
    repairing = replace(order, repair=True)
    assert names(repairing)[0] == "train mep-12"
    do(repairing)
    assert files(trained / "mep-12") == whole and names(order) == []


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [0, 1])
def test_a_training_that_diverges_is_kept_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    needs = [Need("mep-12", "history"), ACCURACY, replace(TRANSFER, sources=("cs-8",)), Need("cs-8", "history")]
    order = order_for(tmp_path, needs)
    finite = TrainingLoop.is_finite
    monkeypatch.setattr(TrainingLoop, "is_finite", lambda self: self.epoch < epochs and finite(self))
    do(order)
    outcome = order.results.outcome("mep-12")
    assert bool(outcome.pop("digests")) == bool(epochs)
    assert outcome == {
        "ended_by": "divergence", "epochs": epochs, "best_epoch": epochs, "collapse_epoch": None, "converged": False,
    }  # fmt: skip
    assert not (tmp_path / "mep-12" / "resume.pt").exists()
    assert names(order) == []
    assert (tmp_path / "mep-12" / "stats").exists() == bool(epochs)
    if not epochs:
        assert order.results.kind("mep-12") == "did not converge"


@pytest.mark.slow
def test_an_interrupted_training_goes_on(trained: Path, tmp_path: Path) -> None:
    """As after a kill in the last epoch: no outcome, but the state after the first epoch."""
    order = order_for(tmp_path / "other", [Need("mep-12", "history")])

    end_epoch = TrainingLoop.end_epoch

    def once(self: TrainingLoop) -> dict[str, float]:
        if self.epoch == 1:
            raise KeyboardInterrupt
        return end_epoch(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingLoop, "end_epoch", once)
        execute(plan_jobs(order)[0], order)
    assert not order.is_trained("mep-12", 0) and names(order) == ["train mep-12"]
    do(order)
    assert files(tmp_path / "other" / "mep-12") == files(trained / "mep-12")


TRANSFERRED = replace(TRANSFER, sources=("cs-8",))


def apart(directory: Path, needs: Sequence[Need] = (ACCURACY, TRANSFERRED)) -> Order:
    """Results in one directory, and weights in another."""
    return order_for(directory / "results", needs, weights=directory / "weights")


@pytest.mark.slow
def test_weights_apart_leave_the_results_the_same(trained: Path, tmp_path: Path) -> None:
    order = apart(tmp_path)
    do(order)
    assert not list(order.directory.rglob("*.pt")) and not list(order.directory.rglob(".lock"))
    assert {path.name for path in order.directory.glob("mep-12/*")} == {"recipe.json", "history.csv", "stats"}
    beside = order_for(trained, order.needs)
    do(beside)
    assert files(order.directory) == files(trained)
    assert order.results.key(ACCURACY) == beside.results.key(ACCURACY)


@pytest.mark.slow
def test_lost_weights_are_trained_again_only_if_something_is_left_to_measure(tmp_path: Path) -> None:
    order = apart(tmp_path, (ACCURACY,))
    do(order)
    whole, about = files(order.directory), (order.directory / "mep-12" / "recipe.json").read_bytes()
    shutil.rmtree(tmp_path / "weights")
    assert names(order) == []
    more = replace(order, needs=(ACCURACY, Need("mep-12", "channels")))
    assert do(more) == ["train mep-12", "measure mep-12"]
    assert (order.directory / "mep-12" / "recipe.json").read_bytes() == about  # the same weights: nothing else changed
    assert {name: files(order.directory)[name] for name in whole} == whole
    shutil.rmtree(tmp_path / "weights")
    assert do(replace(more, needs=(*more.needs, TRANSFERRED))) == ["train mep-12", "train cs-8", "transfer mep-12"]


@pytest.mark.slow
def test_other_weights_are_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on another processor, whose arithmetic gives other weights."""
    order = apart(tmp_path)
    do(order)
    shutil.rmtree(tmp_path / "weights" / "cs-8")
    update = TrainingLoop.update

    def shifted(self: TrainingLoop, *given: Any) -> None:
        update(self, *given)
        with torch.no_grad():
            next(self.model.parameters()).add_(1e-3)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "update", shifted)
        more = replace(order, needs=(*order.needs, Need("cs-8", "channels")))
        assert do(more) == ["train cs-8", "measure cs-8"]
    assert names(order) == ["transfer mep-12"]  # its images came from the old weights
    do(order)
    assert names(more) == []


@pytest.mark.slow
def test_killed_before_the_results_were_taken_over_it_only_takes_them_over(tmp_path: Path) -> None:
    order = apart(tmp_path, (Need("mep-12", "history"),))
    do(order)
    whole = files(order.directory)
    shutil.rmtree(order.directory)
    assert do(order) == ["train mep-12"] and files(order.directory) == whole
    weights = tmp_path / "weights" / "mep-12"
    assert not list(weights.glob("resume.pt")) and len(Run(weights).history) == TINY.knobs["epochs"]


def test_weights_of_a_training_that_goes_on_are_no_results_weights(trained: Path, tmp_path: Path) -> None:
    results = Results(trained, TINY, weights=tmp_path / "weights")
    about = results.run("mep-12").about()
    del about["outcome"]["digests"]  # as results of before these were kept
    shutil.copytree(trained, tmp_path / "weights")
    for run in (results.run("mep-12"), results.workplace("mep-12")):
        (run.directory / "recipe.json").write_text(json.dumps(about))
    assert results.weights_of("mep-12", "last") == tmp_path / "weights" / "mep-12" / "checkpoint.pt"
    del about["outcome"]
    (tmp_path / "weights" / "mep-12" / "recipe.json").write_text(json.dumps(about))
    assert results.weights_of("mep-12", "last") is None


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_only_where_it_is_fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    scale = replace(TINY, knobs={**TINY.knobs, "precision": "bf16", "epochs": 1})
    order = Order(tmp_path, scale, (Need("mep-12", "history"),))
    monkeypatch.setattr(jobs, "has_fast_bf16", lambda device: fast)
    do(order)
    assert order.results.run("mep-12").recipe.precision == ("bf16" if fast else "32")
    assert order.is_trained("mep-12", 0) and names(order) == []


@pytest.mark.slow
def test_each_run_has_the_seeds_of_its_scale(tmp_path: Path) -> None:
    order = Order(tmp_path, replace(TINY, seeds={"mep-12": 2}), (Need("mep-12", "history"), Need("origin", "history")))
    assert names(order) == ["train mep-12", "train mep-12 (seed 1)", "train origin"]
    assert order.results.seeds_shown(["mep-12", "origin"]) == "1 to 2 seeds"
    assert order.results.seeds_shown(["origin"]) == "seed 0"
    given = replace(order, seeds=3)
    assert len(names(given)) == 6 and given.results.seeds_shown(["mep-12", "origin"]) == "3 seeds"


def test_a_run_that_was_moved_is_still_the_run(trained: Path) -> None:
    moved = Path(shutil.move(trained, trained.with_name("moved")))
    assert names(order_for(moved, [Need("mep-12", "history")])) == []
    about = json.loads((moved / "mep-12" / "recipe.json").read_text())
    assert about["outcome"]["ended_by"] == "the schedule"
