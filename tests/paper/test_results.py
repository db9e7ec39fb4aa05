"""Results: what a model is, what is there and what is missing, and that nothing of another kind is taken for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from coprobe.attacks.base import ATTACKS
from coprobe.core import results as store
from coprobe.errors import InputError
from coprobe.metrics.accuracy import Accuracy, wilson
from coprobe.paper.needs import Need
from coprobe.paper.results import MissingResultError, Results, summary
from coprobe.paper.runs import SCALES
from coprobe.training import Recipe
from tests.paper.made import make_results, put, put_accuracy, put_run
from tests.paper.tiny import TINY

NEED = Need("mep-12", "accuracy", "last", 16, ("fgsm", "pgd10"), ("none", "U(16)"))


def history(*rows: tuple[float, float, float]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["clean", "fgsm", "pgd10"])
    return frame.assign(epoch=range(1, len(frame) + 1))


STABLE = history((0.6, 0.4, 0.3), (0.7, 0.4, 0.35))
WORSE = history((0.6, 0.4, 0.35), (0.7, 0.4, 0.3))
COLLAPSED = history((0.6, 0.4, 0.35), (0.9, 0.8, 0.0), (0.9, 0.8, 0.0))


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path, TINY)


@pytest.mark.parametrize(
    ("run", "rows", "outcome", "which", "kind"),
    [
        ("origin", STABLE, {}, "last", "clean-trained"),
        ("noise-16", STABLE, {}, "last", "noise-trained"),
        ("mep-noise-both-16", COLLAPSED, {}, "last", "noise-trained"),
        ("mep-12", STABLE, {}, "last", "stable"),
        ("mep-12", COLLAPSED, {}, "last", "CO-affected"),
        ("mep-12", COLLAPSED, {}, "best", "stable"),
        ("mep-12", history((0.1, 0.1, 0.1), (0.1, 0.1, 0.1)), {}, "last", "did not converge"),
        ("mep-12", history((0.9, 0.1, 0.01), (0.9, 0.1, 0.01)), {}, "last", "not robust"),
        ("mep-12", STABLE, {"epochs": 0, "best_epoch": 0, "converged": False}, "last", "did not converge"),
    ],
)
def test_what_kind_of_model_a_checkpoint_is(
    results: Results, run: str, rows: pd.DataFrame, outcome: dict[str, Any], which: str, kind: str
) -> None:
    put_run(results, run, rows, **outcome)
    assert results.kind(run, which) == kind


def test_the_best_checkpoint_may_be_the_last_one(results: Results) -> None:
    put_run(results, "mep-12", STABLE)
    put_run(results, "mep-16", WORSE)
    assert (results.which("mep-12", "best"), results.which("mep-16", "best")) == ("last", "best")
    assert results.which("mep-16", "last") == "last"


def test_what_is_measured_does_not_depend_on_where_images_and_runs_lie(tmp_path: Path) -> None:
    here = Results(tmp_path / "a", TINY)
    there = Results(tmp_path / "b", TINY, {"cifar10": "parquet:elsewhere"})
    assert here.key(NEED) == there.key(NEED)
    put_run(there, "mep-12", STABLE)
    assert Results(tmp_path / "b", TINY).is_trained("mep-12")


def test_keys_tell_apart_whatever_changes_a_result(results: Results) -> None:
    others = [
        results.key(replace(NEED, run="mep-16")),
        results.key(replace(NEED, kind="channels")),
        results.key(NEED.on("best")),
        results.key(replace(NEED, xi=12)),
        results.key(NEED, seed=1),
        *(
            replace(results, scale=scale).key(NEED)
            for scale in (replace(TINY, images=20), replace(TINY, stretch=2.0), replace(TINY, knobs={"width": 4}))
        ),
    ]
    assert len({results.key(NEED), *others}) == len(others) + 1
    assert results.key(NEED) == results.key(replace(NEED, xi=16.0, attacks=("cw",), noises=("none",)))
    masking, stronger = replace(NEED, kind="masking"), replace(results, scale=replace(TINY, attacks={"fgsm": "pgd:3"}))
    assert results.key(masking) != stronger.key(masking) and results.key(NEED) == stronger.key(NEED)


def test_another_version_of_what_measured_makes_results_anew(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    put_run(results, "mep-12", STABLE)
    put_accuracy(
        results, NEED, {(attack, noise): [3] for attack in ("clean", "fgsm", "pgd10") for noise in NEED.noises}
    )
    needs = [replace(NEED, kind=kind) for kind in ("accuracy", "channels", "masking")]
    before = [results.key(need) for need in needs]
    with monkeypatch.context() as patch:
        patch.setattr(ATTACKS["pgd"], "version", 2)
        assert [results.key(need) == key for need, key in zip(needs, before, strict=True)] == [True, False, False]
        assert results.missing(NEED) == [("", "pgd10")]
    with monkeypatch.context() as patch:
        patch.setattr(Accuracy, "version", 2)
        assert [results.key(need) == key for need, key in zip(needs, before, strict=True)] == [False, True, False]
    assert results.missing(NEED) == []


def test_missing_rows_are_found_by_attack_and_noise(results: Results) -> None:
    put_run(results, "mep-12", STABLE)
    assert results.missing(NEED) == [("", "clean"), ("", "fgsm"), ("", "pgd10")]
    counts = {("clean", "none"): [9], ("clean", "U(16)"): [8, 8], ("fgsm", "none"): [7]}
    put_accuracy(results, NEED, counts, n=10)
    assert results.missing(NEED) == [("", "fgsm"), ("", "pgd10")]
    assert results.missing(replace(NEED, noises=("none",))) == [("", "pgd10")]
    assert results.missing(replace(NEED, attacks=("fgsm", "aa"), noises=("none",))) == []  # the scale has no aa
    other = replace(results, scale=replace(TINY, attacks={"fgsm": "pgd:1", "pgd10": "pgd:2"}))
    assert ("", "fgsm") in other.missing(replace(NEED, noises=("none",)))
    assert results.missing(Need("mep-12", "history")) == []


def test_masking_lacks_the_attacks_that_it_was_not_asked_for(results: Results) -> None:
    need = Need("mep-12", "masking", attacks=("fgsm",))
    assert results.missing(need) == [("", "masking")]
    rows = [{"attack": attack, "mask": "none", "correct": 1} for attack in ("clean", "fgsm")]
    put(results, need, pd.DataFrame(rows))
    assert results.missing(need) == []
    assert results.missing(replace(need, attacks=("fgsm", "pgd10"))) == [("", "masking")]
    assert results.missing(replace(need, attacks=("fgsm", "aa"))) == []


def test_transfer_is_missing_by_source(results: Results) -> None:
    need = Need("mep-12", "transfer", attacks=("fgsm",), sources=("cs-8", "cs-12"))
    rows = [
        {"source": "cs-8", "attack": attack, "spec": attack, "noise": "none", "draw": 0, "n": 10, "correct": 5}
        for attack in ("clean", "fgsm")
    ]
    put(results, need, pd.DataFrame(rows))
    assert results.missing(need) == [("cs-12", "clean"), ("cs-12", "fgsm")]


def test_a_run_of_another_recipe_is_refused(results: Results, tmp_path: Path) -> None:
    put_run(replace(results, scale=replace(TINY, knobs={**TINY.knobs, "epochs": 3})), "mep-12", STABLE)
    assert not results.is_planned("mep-12") and results.is_planned("mep-16")
    for look in (results.is_trained, results.kind, results.history):
        with pytest.raises(InputError, match=r"mep-12: is not the run that the plan has \(--epochs 2 \(not 3\)\)"):
            look("mep-12")
    (tmp_path / "mep-12" / "recipe.json").write_text("{")
    assert not results.is_planned("mep-12")
    with pytest.raises(InputError, match=r"mep-12: is not .*\(no readable recipe\.json\).*--repair to train it again"):
        results.is_trained("mep-12")


def test_an_unfinished_run_is_not_trained(results: Results) -> None:
    put_run(results, "mep-12", STABLE)
    path = results.run("mep-12").directory / "recipe.json"
    about = json.loads(path.read_text())
    del about["outcome"]
    path.write_text(json.dumps(about))
    assert results.is_planned("mep-12") and not results.is_trained("mep-12")
    with pytest.raises(
        MissingResultError, match=r"run mep-12 is not trained; 'coprobe paper --scale tiny --runs .* makes it"
    ):
        results.outcome("mep-12")


def test_what_makes_it_names_runs_that_are_not_where_they_usually_are(results: Results) -> None:
    usual = replace(results, directory=Path("runs/paper/tiny"))
    assert usual.remedy == "'coprobe paper --scale tiny' makes it"
    assert replace(results, directory=Path("a b")).remedy == "'coprobe paper --scale tiny --runs 'a b'' makes it"


def test_runs_of_two_scales_are_not_mixed(results: Results, tmp_path: Path) -> None:
    results.mark()
    assert json.loads((tmp_path / "scale.json").read_text()) == {"scale": "tiny"}
    Results(tmp_path, TINY)
    with pytest.raises(InputError, match="holds runs of scale tiny, not demo; name another --runs"):
        Results(tmp_path, SCALES["demo"])


@pytest.mark.parametrize("content", ["{", "[]", '{"scales": 1}'])
def test_a_damaged_mark_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "scale.json").write_text(content)
    with pytest.raises(InputError, match=r"scale\.json: can't be read; delete it"):
        Results(tmp_path, TINY)


def test_runs_without_images_are_no_part_of_a_scale(results: Results) -> None:
    assert len(results.runs) == 57 and "origin-c100" not in results.runs
    with pytest.raises(MissingResultError, match="run origin-c100 is not part of scale tiny"):
        results.outcome("origin-c100")
    assert len(replace(results, data={"cifar100": "cifar100"}).runs) == 66


def test_what_is_not_measured_says_what_makes_it(results: Results) -> None:
    put_run(results, "mep-12", WORSE)
    for need in (NEED.on("best"), Need("mep-12", "channels", "best")):
        with pytest.raises(MissingResultError) as caught:
            results.get(need)
        assert str(caught.value) == (
            f"{need.kind} of run mep-12 (best checkpoint, 16/255) is not measured; {results.remedy}"
        )


def test_a_run_that_diverged_at_once_has_nothing_to_show(results: Results) -> None:
    put_run(results, "mep-12", STABLE)
    put_run(results, "cs-8", STABLE, epochs=0, best_epoch=0, converged=False, ended_by="divergence")
    assert results.is_lost("cs-8") and not results.is_lost("mep-12") and not results.is_lost("mep-16")
    needs = [Need("cs-8", "channels"), Need("mep-12", "transfer", attacks=("fgsm",), sources=("cs-8",))]
    for look in (lambda: results.history("cs-8"), *(lambda need=need: results.get(need) for need in needs)):
        with pytest.raises(MissingResultError, match="run cs-8 diverged in its first epoch: there is nothing to show"):
            look()


def test_damage_is_found_where_it_is_read(results: Results) -> None:
    put_run(results, "mep-12", STABLE)
    put_accuracy(results, NEED, {("clean", "none"): [9]})
    results.path(NEED).write_text("source,attack\n")
    for look in (results.find, results.missing, results.get):
        with pytest.raises(store.DamagedError, match=r"accuracy-last-16\.csv: damaged"):
            look(NEED)


def test_accuracies_over_draws_with_intervals(results: Results) -> None:
    put_run(results, "mep-12", STABLE)
    counts = {
        ("clean", "none"): [90],
        ("fgsm", "none"): [40],
        ("clean", "U(16)"): [80, 84],
        ("fgsm", "U(16)"): [30, 40],
    }
    put_accuracy(results, NEED, counts, n=100)
    frame = results.accuracies("mep-12", attacks=("fgsm", "aa"), noises=("none", "U(16)"))
    assert frame[["attack", "label", "noise", "n", "accuracy"]].to_numpy().tolist() == [
        ["clean", "clean", "none", 100, 0.9],
        ["clean", "clean", "U(16)", 100, 0.82],
        ["fgsm", "FGSM", "none", 100, 0.4],
        ["fgsm", "FGSM", "U(16)", 100, 0.35],
    ]
    assert frame["spread"].tolist()[1::2] == pytest.approx([0.02 * 2**0.5, 0.05 * 2**0.5])
    assert frame["spread"].isna().tolist() == [True, False, True, False]
    assert (frame["low"].iloc[3], frame["high"].iloc[3]) == wilson(35, 100)


def test_several_seeds_are_read_together_each_at_its_own_checkpoint(tmp_path: Path) -> None:
    results = Results(tmp_path, TINY, seeds=2)
    put_run(results, "mep-12", STABLE)
    with pytest.raises(MissingResultError, match="run mep-12 is not trained"):
        results.history("mep-12")
    put_run(results, "mep-12", WORSE, seed=1)
    assert results.run("mep-12", 1).directory.name == "mep-12-s1"
    assert results.history("mep-12")["seed"].tolist() == [0, 0, 1, 1]
    need = Need("mep-12", "accuracy", "best")
    put_accuracy(results, need.on("last"), {("clean", "none"): [60]})  # the best of seed 0 is its last
    with pytest.raises(MissingResultError, match="best checkpoint"):
        results.accuracies("mep-12", "best")
    put_accuracy(results, need, {("clean", "none"): [70]}, seed=1)
    (row,) = results.accuracies("mep-12", "best").to_dict("records")
    assert row["accuracy"] == pytest.approx(0.65) and row["n"] == 100
    deviation = 0.1 / 2**0.5
    assert (row["low"], row["high"]) == pytest.approx((0.65 - deviation, 0.65 + deviation))


def test_the_interval_of_seeds_stays_a_share() -> None:
    rows = pd.DataFrame({"seed": [0, 1], "draw": [0, 0], "n": [10, 10], "correct": [0, 5]})
    made = summary(rows)
    assert (made["accuracy"], made["low"]) == (0.25, 0.0) and made["high"] == pytest.approx(0.25 + 0.5 / 2**0.5)


def test_recipes_have_the_data_that_was_named(tmp_path: Path) -> None:
    results = Results(tmp_path, TINY, {"cifar10": "folder:x"})
    assert results.recipe("mep-12").data == "folder:x" and isinstance(results.recipe("origin-c100"), Recipe)


def test_channels_are_those_of_the_first_seed(tmp_path: Path) -> None:
    results = make_results(tmp_path, TINY, ["mep-12"], [Need("mep-12", "channels")], seeds=2)
    assert len(results.channels("mep-12").table()) == 5 * 16
    first = make_results(tmp_path, TINY, ["mep-12"], [Need("mep-12", "channels")])
    pd.testing.assert_frame_equal(results.channels("mep-12").frame, first.channels("mep-12").frame)


def test_runs_on_other_images_are_not_mixed(results: Results) -> None:
    for name, digest in (("mep-12", "a"), ("mep-16", "a"), ("cs-8", None), ("cs-12", "b")):
        put_run(results, name, STABLE)
        path = results.run(name).directory / "recipe.json"
        about = json.loads(path.read_text())
        path.write_text(json.dumps({**about, "provenance": {"data_digest": digest} if digest else {}}))
        if digest != "b":
            results.check_images()
    with pytest.raises(InputError, match="cs-12 and mep-12 were trained on different images; name another --runs"):
        results.check_images()
    path.write_text("{")  # that is another matter
    results.check_images()
