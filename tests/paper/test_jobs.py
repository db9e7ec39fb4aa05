"""What is planned, in which order, and what is done of it."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from coprobe.core import results as store
from coprobe.errors import InputError
from coprobe.paper.jobs import Job, Order, execute, plan_jobs
from coprobe.paper.needs import Need
from coprobe.paper.runs import RUNS, SCALES
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
        assert len(jobs) == 2 * (66 if scale.name == "paper" else 57) and all(job.passes > 0 for job in jobs)


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


def test_a_run_that_was_moved_is_still_the_run(trained: Path) -> None:
    moved = Path(shutil.move(trained, trained.with_name("moved")))
    assert names(order_for(moved, [Need("mep-12", "history")])) == []
    about = json.loads((moved / "mep-12" / "recipe.json").read_text())
    assert about["outcome"]["ended_by"] == "the schedule"
