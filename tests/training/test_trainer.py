from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

import coprobe
from coprobe.attacks import AdversarialExamples, parse
from coprobe.data import Dataset, hold_out, load
from coprobe.errors import InputError, RunError
from coprobe.evaluation import evaluate
from coprobe.statistics import collect
from coprobe.training import Recipe, Run, train

TINY = Recipe(
    data="digits", limit_train=96, held_out=40, width=4, eps_train=26, epochs=2, batch_size=32, lr=0.05, augment="crop"
)
#: What depends on the machine's mood.
MEASURED = ["seconds", "train_seconds", "images_per_second", "peak_memory_mib"]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", "train")


@pytest.fixture(scope="module")
def run(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(TINY, tmp_path_factory.mktemp("runs") / "tiny", data=digits)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return coprobe.load(path).model.network.state_dict()


def test_the_run_directory_is_complete(run: Run) -> None:
    assert {p.name for p in run.directory.iterdir()} >= {"recipe.json", "history.csv", "checkpoint.pt", "best.pt"}
    assert not list(run.directory.glob(".*"))
    assert not (run.directory / "resume.pt").exists()
    history = run.history
    assert list(history["epoch"]) == [1, 2]
    assert {f"v_act_{node}" for node in "ABCDE"} <= set(history.columns)
    assert {"lr", "train_loss", "train_accuracy", "clean", "fgsm", "pgd10", "fgsm_16", "pgd10_16", "v_act_A_16"} <= set(history.columns)
    assert {"seconds", "train_seconds", "images_per_second", "peak_memory_mib"} <= set(history.columns)
    assert history.notna().all().all()
    assert list(history["images_per_second"] * history["train_seconds"]) == pytest.approx([96, 96])
    saved = json.loads((run.directory / "recipe.json").read_text())
    assert saved["provenance"]["images"] == 96
    assert run.recipe == TINY
    assert saved["outcome"] == run.outcome
    assert run.outcome is not None
    assert {key: run.outcome[key] for key in ("ended_by", "epochs")} == {"ended_by": "schedule", "epochs": 2}


def test_the_history_is_what_can_be_measured_again_from_the_checkpoint(run: Run, digits: Dataset) -> None:
    _, held_out = hold_out(digits, 96, 40)
    model = coprobe.load(run.checkpoint).model
    attacks = [parse("fgsm", 26 / 255), parse("pgd:10", 26 / 255)]
    examples = AdversarialExamples(model, held_out, attacks, batch_size=250, seed=0)
    evaluation = evaluate(model, examples)
    last = run.history.iloc[-1]
    assert last["clean"] == pytest.approx(evaluation.accuracy("clean"))
    assert last["fgsm"] == pytest.approx(evaluation.accuracy("fgsm"))
    assert last["pgd10"] == pytest.approx(evaluation.accuracy("pgd:10"))
    at_16 = AdversarialExamples(model, held_out, [parse("pgd:10", 16 / 255)], batch_size=250, seed=0)
    assert last["pgd10_16"] == pytest.approx(evaluate(model, at_16).accuracy("pgd:10"))
    assert last["v_act_B_16"] == pytest.approx(collect(model, at_16, ["B"], "pgd:10").v_act("B"), rel=1e-3)
    statistics = collect(model, examples, ["A", "E"], "pgd:10")
    assert last["v_act_A"] == pytest.approx(statistics.v_act("A"), rel=1e-3)
    assert last["v_act_E"] == pytest.approx(statistics.v_act("E"), rel=1e-3)


def test_the_same_recipe_gives_the_same_weights(run: Run, digits: Dataset, tmp_path: Path) -> None:
    again = train(TINY, tmp_path / "again", data=digits)
    first, second = weights(run.checkpoint), weights(again.checkpoint)
    assert all(torch.equal(first[name], second[name]) for name in first)
    pd.testing.assert_frame_equal(run.history.drop(columns=MEASURED), again.history.drop(columns=MEASURED))


def test_another_seed_gives_other_weights(run: Run, digits: Dataset, tmp_path: Path) -> None:
    other = train(replace(TINY, seed=1, epochs=1), tmp_path / "other", data=digits)
    assert not torch.equal(weights(run.checkpoint)["conv1.weight"], weights(other.checkpoint)["conv1.weight"])


def test_best_is_the_epoch_with_the_highest_held_out_pgd_accuracy(run: Run) -> None:
    history = run.history
    best = coprobe.load(run.directory / "best.pt")
    assert best.metrics["pgd10"] == history["pgd10"].max()
    assert best.metrics["selected"] == "best PGD-10"
    last = coprobe.load(run.checkpoint)
    assert last.metrics["epoch"] == 2
    assert last.metrics["selected"] == "last epoch"
    assert last.image_shape == (1, 32, 32)


def test_the_stabiliser_lowers_the_feature_difference(digits: Dataset, tmp_path: Path) -> None:
    rows = {}
    for weight in (1e-9, 20.0):
        recipe = replace(TINY, stable_node="B", stable_weight=weight)
        rows[weight] = train(recipe, tmp_path / str(weight), data=digits).history
    assert rows[20.0]["stable"].iloc[-1] < 0.5 * rows[1e-9]["stable"].iloc[-1]


def test_mep_has_the_logit_term_unless_it_is_switched_off(digits: Dataset, tmp_path: Path) -> None:
    recipe = replace(TINY, method="fgsm-mep", epochs=1)
    assert "logit" in train(recipe, tmp_path / "with", data=digits).history.columns
    assert "logit" not in train(replace(recipe, logit_weight=0.0), tmp_path / "without", data=digits).history.columns


def test_divergence_keeps_the_last_good_checkpoint(digits: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(RunError, match=r"diverged in epoch 1 .* no checkpoint was written; lower --lr"):
        train(replace(TINY, lr=1e30, schedule="constant"), out, data=digits)
    assert not (out / "checkpoint.pt").exists()


def test_a_run_is_not_overwritten_unasked(run: Run, digits: Dataset) -> None:
    before = run.checkpoint.read_bytes()
    with pytest.raises(InputError, match="holds a run already; choose another --out, or pass --resume or --overwrite"):
        train(TINY, run.directory, data=digits)
    assert run.checkpoint.read_bytes() == before


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"method": "clean", "stable_node": "B", "stable_weight": 1.0}, "method clean has no attack"),
        ({"stable_node": "Z", "stable_weight": 1.0}, "unknown node 'Z'"),
        ({"arch": "resnet19"}, "unknown architecture 'resnet19'; did you mean resnet18"),
        ({"limit_train": 100_000}, "digits"),
    ],
)
def test_recipes_that_cannot_be_followed_leave_nothing(
    knobs: dict[str, object], message: str, digits: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        train(replace(TINY, **knobs), tmp_path / "run", data=digits)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_history_of_a_damaged_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no readable history"):
        _ = Run(tmp_path).history
