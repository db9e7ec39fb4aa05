from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import coprobe
from coprobe.attacks import AdversarialExamples, parse
from coprobe.data import Batch, Dataset, hold_out, load
from coprobe.errors import InputError
from coprobe.metrics import Accuracy, ChannelActivations
from coprobe.training import METHODS, Run, train
from coprobe.training.loop import TrainingLoop
from coprobe.training.regularizers import ChannelDivergence, FeatureStability, LogitStability
from tests.training.runs import MEASURED, QUICK, TINY, Told, same, weights


class Watch:
    """Follows a run from inside: its loop, and the weights before its first update and after every one."""

    def __init__(self) -> None:
        self.loop: TrainingLoop | None = None
        self.terms: list[Any] = []
        self.weights: list[dict[str, Tensor]] = []

    def note(self, loop: TrainingLoop) -> None:
        network = loop.model.network
        assert isinstance(network, nn.Module)
        self.weights.append({name: value.clone() for name, value in network.state_dict().items()})


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch, run_epoch = Watch(), TrainingLoop.run_epoch

    def watched(loop: TrainingLoop) -> Iterator[Batch]:
        if watch.loop is None:
            watch.loop, watch.terms = loop, [replace(term) for term in loop.regularizers]  # type: ignore[type-var]
            watch.note(loop)
        for batch in run_epoch(loop):
            watch.note(loop)
            yield batch

    monkeypatch.setattr(TrainingLoop, "run_epoch", watched)
    return watch


def test_the_run_directory_is_complete(run: Run) -> None:
    assert {p.name for p in run.directory.iterdir()} >= {"recipe.json", "history.csv", "checkpoint.pt", "best.pt"}
    assert not list(run.directory.glob(".*"))
    assert not (run.directory / "resume.pt").exists()
    history = run.history
    assert list(history["epoch"]) == [1, 2]
    assert {f"v_act_{node}" for node in "ABCDE"} <= set(history.columns)
    assert {"lr", "train_loss", "train_accuracy", "clean", "fgsm", "pgd10"} <= set(history.columns)
    assert {"fgsm_16", "pgd10_16", "v_act_A_16"} <= set(history.columns)
    assert {"seconds", "train_seconds", "images_per_second", "peak_memory_mib"} <= set(history.columns)
    assert history.notna().all().all()
    assert list(history["images_per_second"] * history["train_seconds"]) == pytest.approx([96, 96])
    saved = json.loads((run.directory / "recipe.json").read_text())
    assert saved["provenance"]["images"] == 96
    assert run.recipe == TINY
    assert saved["outcome"] == run.outcome
    assert run.outcome is not None
    assert {key: run.outcome[key] for key in ("ended_by", "epochs")} == {"ended_by": "the schedule", "epochs": 2}


def test_the_history_is_what_can_be_measured_again_from_the_checkpoint(run: Run, digits: Dataset) -> None:
    _, held_out = hold_out(digits, 96, 20)
    model = coprobe.load(run.checkpoint).model
    attacks = [parse("fgsm", 26 / 255), parse("pgd:10", 26 / 255)]
    examples = AdversarialExamples(model, held_out, attacks, batch_size=250, seed=0)
    evaluation = Accuracy().measure(model, examples)
    last = run.history.iloc[-1]
    assert last["clean"] == pytest.approx(evaluation.accuracy("clean"))
    assert last["fgsm"] == pytest.approx(evaluation.accuracy("fgsm"))
    assert last["pgd10"] == pytest.approx(evaluation.accuracy("pgd:10"))
    at_16 = AdversarialExamples(model, held_out, [parse("pgd:10", 16 / 255)], batch_size=250, seed=0)
    assert last["pgd10_16"] == pytest.approx(Accuracy().measure(model, at_16).accuracy("pgd:10"))
    v_act = ChannelActivations(nodes=("B",), attack="pgd:10").measure(model, at_16).v_act("B")
    assert last["v_act_B_16"] == pytest.approx(v_act, rel=1e-3)
    statistics = ChannelActivations(nodes=("A", "E"), attack="pgd:10").measure(model, examples)
    assert last["v_act_A"] == pytest.approx(statistics.v_act("A"), rel=1e-3)
    assert last["v_act_E"] == pytest.approx(statistics.v_act("E"), rel=1e-3)


def test_the_second_radius_is_a_knob(digits: Dataset, tmp_path: Path) -> None:
    history = train(replace(QUICK, eps_also=8), tmp_path / "8", data=digits).history
    assert {"pgd10_8", "v_act_A_8"} <= set(history.columns)
    assert not [column for column in history.columns if column.endswith("_16")]
    history = train(replace(QUICK, eps_also=0), tmp_path / "0", data=digits).history
    assert not [column for column in history.columns if column[-1].isdigit() and column != "pgd10"]


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_weights(run: Run, digits: Dataset, tmp_path: Path) -> None:
    again = train(TINY, tmp_path / "again", data=digits)
    assert same(weights(run.checkpoint), weights(again.checkpoint))
    pd.testing.assert_frame_equal(run.history.drop(columns=MEASURED), again.history.drop(columns=MEASURED))


def test_another_seed_gives_other_weights(digits: Dataset, tmp_path: Path) -> None:
    runs = [train(replace(QUICK, seed=seed), tmp_path / str(seed), data=digits) for seed in (0, 1)]
    first, second = (weights(run.checkpoint)["conv1.weight"] for run in runs)
    assert not torch.equal(first, second)


def test_best_is_the_epoch_with_the_highest_held_out_pgd_accuracy(run: Run) -> None:
    history = run.history
    best = coprobe.load(run.directory / "best.pt")
    assert best.metrics["pgd10"] == history["pgd10"].max()
    assert best.metrics["selected"] == "epoch of best PGD-10"
    last = coprobe.load(run.checkpoint)
    assert last.metrics["epoch"] == 2
    assert last.metrics["selected"] == "last epoch"
    assert last.image_shape == (1, 32, 32)


@pytest.mark.slow
def test_mep_has_the_logit_term_unless_it_is_switched_off(digits: Dataset, tmp_path: Path) -> None:
    recipe = replace(QUICK, method="fgsm-mep")
    assert "logit" in train(recipe, tmp_path / "with", data=digits).history.columns
    assert "logit" not in train(replace(recipe, logit_weight=0.0), tmp_path / "without", data=digits).history.columns


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


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method: str, digits: Dataset, tmp_path: Path) -> None:
    told = Told()
    run = train(replace(QUICK, method=method), tmp_path / "run", data=digits, callback=told.callback)
    assert np.isfinite(run.history.to_numpy(dtype=float)).all()
    assert run.history["train_loss"][0] > 0
    assert run.outcome is not None
    assert run.outcome["ended_by"] == "the schedule"
    assert len(told.rows) == 1
    assert sum(told.images) == 64 * (8 if method == "free" else 1)
    assert all(value.isfinite().all() for value in weights(run.checkpoint).values())


def test_everything_at_once(digits: Dataset, tmp_path: Path, watch: Watch) -> None:
    recipe = replace(
        QUICK,
        method="fgsm-mep",
        options={"label-factor": 0.7},
        step_size=20.0,
        stable_node="C",
        stable_weight=3.0,
        stable_detach=True,
        logit_weight=2.0,
        noise="both",
        co_node="B",
        co_top=25.0,
        co_weight=7.0,
        co_by="variance",
        co_select="once",
        co_images=30,
        average=0.9,
        padding="reflect",
        seed=5,
    )
    run = train(recipe, tmp_path / "run", data=digits)
    assert watch.terms == [
        FeatureStability("C", 3.0, detach=True),
        LogitStability(2.0),
        ChannelDivergence("B", 7.0, 25.0, "variance", each_epoch=False, images=30, epsilon=26 / 255, seed=5),
    ]
    assert watch.loop is not None
    method = watch.loop.method
    assert (method.epsilon, method.alpha) == (26 / 255, 20 / 255)
    assert vars(method)["label_factor"] == 0.7
    assert np.isfinite(run.history.to_numpy(dtype=float)).all()
    assert {"stable", "logit", "co_masked_loss", "co_difference"} <= set(run.history.columns)


def test_channels_are_chosen_each_epoch_by_default(digits: Dataset, tmp_path: Path, watch: Watch) -> None:
    train(replace(QUICK, co_node="B", co_top=25.0), tmp_path / "run", data=digits)
    assert watch.terms == [ChannelDivergence("B", 200.0, 25.0, "t-act", True, 2000, 26 / 255, 0)]


@pytest.mark.slow
def test_the_average_follows_the_weights_after_every_update(
    run: Run, digits: Dataset, tmp_path: Path, watch: Watch
) -> None:
    averaged = train(replace(TINY, average=0.8), tmp_path / "run", data=digits)
    assert len(watch.weights) == 1 + 6
    assert same(watch.weights[-1], weights(run.checkpoint))  # the training itself is as without it
    saved = weights(averaged.checkpoint)
    for name, value in watch.weights[0].items():
        later = [state[name] for state in watch.weights[1:]]
        average = value
        for number in later:
            average = 0.8 * average + 0.2 * number if value.is_floating_point() else number
        torch.testing.assert_close(saved[name], average, rtol=0, atol=1e-6, msg=name)
    assert (saved["conv1.weight"] - watch.weights[-1]["conv1.weight"]).abs().max() > 1e-4


def test_init_starts_from_the_weights_of_another_run(run: Run, digits: Dataset, tmp_path: Path, watch: Watch) -> None:
    train(replace(QUICK, init=str(run.checkpoint), seed=9), tmp_path / "run", data=digits)
    assert same(watch.weights[0], weights(run.checkpoint))


@pytest.mark.parametrize("knobs", [{"width": 6}, {"arch": "preact-resnet18"}])
def test_init_refuses_another_architecture(knobs: dict[str, Any], run: Run, digits: Dataset, tmp_path: Path) -> None:
    path = str(run.checkpoint)
    with pytest.raises(InputError, match=r"--init .*checkpoint\.pt: is a resnet18 {.*'width': 4.*}, not a "):
        train(replace(QUICK, init=path, **knobs), tmp_path / "run", data=digits)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_watching_the_test_set_is_asked_for_and_changes_nothing_else(run: Run, digits: Dataset, tmp_path: Path) -> None:
    asked = train(replace(TINY, watch="test"), tmp_path / "run", data=digits)
    assert asked.about()["provenance"]["watched"] == "20 test images"
    assert run.about()["provenance"]["watched"] == "20 held-out training images"
    checkpoint = coprobe.load(asked.checkpoint)
    examples = AdversarialExamples(
        checkpoint.model, load("digits", "test", limit=20), [parse("pgd:10", 26 / 255)], batch_size=250
    )
    evaluation = Accuracy().measure(checkpoint.model, examples)
    last = asked.history.iloc[-1]
    assert (last["clean"], last["pgd10"]) == (evaluation.accuracy("clean"), evaluation.accuracy("pgd:10"))
    v_act = ChannelActivations(nodes=("B",), attack="pgd:10").measure(checkpoint.model, examples).v_act("B")
    assert last["v_act_B"] == pytest.approx(v_act, rel=1e-3)
    assert run.history["v_act_B"].iloc[-1] != pytest.approx(v_act, rel=1e-3)
    assert same(weights(asked.checkpoint), weights(run.checkpoint))


@pytest.mark.slow
def test_bf16_trains_in_bf16_and_is_measured_in_float32(digits: Dataset, tmp_path: Path, watch: Watch) -> None:
    # One update, no sign in it, and the last layer: so rounding stays small.
    recipe = replace(QUICK, method="clean", limit_train=32, schedule="constant")
    exact = train(recipe, tmp_path / "32", data=digits)
    rounded = train(replace(recipe, precision="bf16"), tmp_path / "bf16", data=digits)
    start, first, second = (
        state["linear.weight"] for state in (watch.weights[0], weights(exact.checkpoint), weights(rounded.checkpoint))
    )
    assert 1e-4 < (first - second).norm() / (first - start).norm() < 0.1
    assert second.dtype == torch.float32

    _, held_out = hold_out(digits, 32, 20)
    checkpoint = coprobe.load(rounded.checkpoint)
    v_act = {}
    for checkpoint.model.precision in ("32", "bf16"):
        examples = AdversarialExamples(checkpoint.model, held_out, [parse("pgd:10", 8 / 255)], batch_size=250)
        statistics = ChannelActivations(nodes=("A",), attack="pgd:10").measure(checkpoint.model, examples)
        v_act[checkpoint.model.precision] = statistics.v_act("A")
    assert rounded.history["v_act_A"].iloc[-1] == pytest.approx(v_act["32"], rel=1e-5)
    assert v_act["bf16"] != pytest.approx(v_act["32"], rel=1e-5)
