"""The paper's tables: which checkpoint stands where, what is measured for it, and cells computed by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from coprobe.attacks.examples import CLEAN
from coprobe.core.files import write_json
from coprobe.errors import InputError
from coprobe.paper.needs import Need
from coprobe.paper.published import published
from coprobe.paper.results import MissingResultError, Results
from coprobe.paper.runs import RUNS, SCALES, Scale
from coprobe.paper.tables import TABLES, about, content, needs
from tests.paper.made import make_results, put_accuracy, put_run

KEYS = ["dataset", "method", "xi_train", "node", "alpha3"]


#: A scale whose numbers stay as they are, with everything that can differ from the paper's.
TINY = replace(
    SCALES["demo"],
    about="digits, in no time",
    data={"cifar10": "digits"},
    attacks={"fgsm": "fgsm", "pgd10": "pgd:10", "pgd20": "pgd:20", "pgd50": "pgd:50", "cw": "cw:20", "aa": "apgd-ce"},
    stretch=3.5,
    weights=0.1,
    baseline="fgsm",
    own_schedules=False,
    images=60,
)


def results(directory: Path, scale: Scale = TINY, seeds: int = 1) -> Results:
    return Results(directory, scale, seeds=seeds)


def history(clean: list[float], fgsm: list[float], pgd10: list[float]) -> pd.DataFrame:
    """60 seconds for the first epoch, 120 for the second, and so on."""
    epoch = range(1, len(clean) + 1)
    seconds = [60.0 * number for number in epoch]
    return pd.DataFrame({"epoch": epoch, "clean": clean, "fgsm": fgsm, "pgd10": pgd10, "train_seconds": seconds})


#: Of two epochs: the best checkpoint is the first, and the second one neither collapses nor fails.
WORSE = history([0.6, 0.7], [0.4, 0.4], [0.35, 0.3])


def cell(frame: pd.DataFrame, **keys: object) -> pd.Series:
    for key, wanted in keys.items():
        frame = frame[frame[key] == wanted]
    assert len(frame) == 1, keys
    return frame.iloc[0]


@pytest.mark.parametrize("number", TABLES)
def test_every_printed_number_has_its_place(number: int) -> None:
    table = TABLES[number]
    places = [
        (*row.keys.values(), "none" if metric in ("co", "minutes") else row.noise, metric)
        for row in table.rows
        if row.xi_eval == 16
        for metric in table.metrics
    ]
    frame = published(number).astype(object)
    frame["noise"] = frame["noise"].fillna("none")
    frame = frame.where(frame.notna(), None)
    assert places and len(places) == len(set(places))
    assert set(places) == set(frame[[*KEYS, "noise", "metric"]].itertuples(index=False, name=None))


@pytest.mark.parametrize("number", TABLES)
def test_every_row_has_a_run_trained_as_it_says(number: int) -> None:
    methods = {
        "FGSM-MEP": "baseline", "C.Smooth": "cs-mep", "ATAS": "atas", "ZeroGrad": "zerograd", "FGSM-RS": "fgsm-rs",
        "Origin": "clean", "CO": "baseline", "Ours-CO": "baseline", "Ours-FD": "baseline", "Stable": "baseline",
    }  # fmt: skip
    for row in TABLES[number].rows:
        knobs = RUNS[row.run].knobs
        assert knobs["method"] == methods[row.method]
        regularized = row.method in ("Ours-FD", "Stable")
        assert ("stable_node" in knobs) == regularized
        if regularized:
            expected = (row.node or "B", row.alpha3 or 200)
            assert (knobs["stable_node"], knobs["stable_weight"]) == expected
        assert knobs.get("logit_weight", 0) == (10 if row.method == "FGSM-MEP" else 0)


def test_collapsed_and_clean_models_are_shown_as_they_ended_and_stable_ones_at_their_best() -> None:
    shown = {(row.method, row.which) for table in TABLES.values() for row in table.rows}
    last = {"CO", "Ours-CO", "FGSM-RS", "Origin"}
    best = {"FGSM-MEP", "C.Smooth", "ATAS", "ZeroGrad", "Ours-FD", "Stable"}
    assert shown == {(method, "last") for method in last} | {(method, "best") for method in best}


def test_what_table_7_needs() -> None:
    wanted = []
    for which, attacks in (("last", ("pgd50", "cw", "aa")), ("best", ("pgd50",))):
        wanted += [Need(f"rs-{xi}", "accuracy", which, 16, attacks, ("none", "U(16)")) for xi in (10, 12, 14, 16)]
    assert needs(7) == wanted


def test_what_other_tables_need() -> None:
    at_12 = Need("mep-eq10-12", "accuracy", "best", 12, ("pgd50", "cw", "aa"))
    assert at_12 in needs(2) and replace(at_12, xi=16) in needs(2)
    assert Need("fd-b200-12", "accuracy", "last", noises=("none", "U(16)")) in needs(3)
    noises = tuple(f"{kind}({amount})" for kind in ("U", "Gauss") for amount in (10, 12, 14, 16))
    assert needs(4) == [
        Need("mep-16", "accuracy", "last", 16, ("pgd50", "cw", "aa"), noises),
        Need("mep-16", "accuracy", "best", 16, ("pgd50",), noises),
    ]
    for number in TABLES:
        found = needs(number)
        assert len({need.place for need in found}) == len(found)


def test_cells_of_table_7_by_hand(tmp_path: Path) -> None:
    made = results(tmp_path)
    put_run(made, "rs-10", WORSE)
    counts = {
        (CLEAN, "none"): [80], (CLEAN, "U(16)"): [84, 86], ("pgd50", "none"): [3], ("pgd50", "U(16)"): [40, 41],
    }  # fmt: skip
    put_accuracy(made, Need("rs-10", "accuracy", "last"), counts)
    put_accuracy(made, Need("rs-10", "accuracy", "best"), {(CLEAN, "none"): [60], ("pgd50", "none"): [30]}, n=200)
    frame = content(7, made)
    ours = frame[(frame["run"] == "rs-10") & frame["main"]]

    clean = cell(ours, metric=CLEAN, noise="none")
    assert (clean["ours"], clean["paper"], clean["n"], clean["seeds"]) == (pytest.approx(80), 79.97, 100, 1)
    assert clean["difference"] == pytest.approx(0.03)
    assert (clean["low"], clean["high"]) == (pytest.approx(71.12, abs=0.01), pytest.approx(86.66, abs=0.01))
    assert (clean["xi_train"], clean["xi_here"], clean["xi_eval"]) == (10, 35, 16)
    assert (clean["dataset"], clean["method"], clean["which"]) == ("CIFAR-10", "FGSM-RS", "last")
    noisy = cell(ours, metric="pgd50", noise="U(16)")
    assert (noisy["ours"], noisy["difference"]) == (pytest.approx(40.5), pytest.approx(40.5 - 38.99))
    assert noisy["label"] == "PGD-50"
    missing = cell(ours, metric="cw", noise="none")
    assert missing[["ours", "low", "high", "n", "difference"]].isna().all() and missing["paper"] == 4.15
    assert cell(ours, metric="aa", noise="none")["label"] == "APGD-CE"

    best = frame[(frame["run"] == "rs-10") & ~frame["main"]]
    assert set(best["which"]) == {"best"} and set(best["metric"]) == {CLEAN, "pgd50"} and best["paper"].isna().all()
    pgd50 = cell(best, metric="pgd50", noise="none")
    assert (pgd50["ours"], pgd50["n"]) == (pytest.approx(15), 200)
    assert best[best["noise"] == "U(16)"]["ours"].isna().all()
    assert frame[frame["run"] == "rs-12"]["ours"].isna().all()
    assert len(frame) == 8 * (4 + 2)


def test_seeds_are_averaged(tmp_path: Path) -> None:
    made = results(tmp_path, seeds=2)
    need = Need("mep-eq10-12", "accuracy", attacks=("pgd50",))
    for seed in range(2):
        put_run(made, need.run, WORSE, seed)
        put_accuracy(made, need.on("best"), {(CLEAN, "none"): [70], ("pgd50", "none"): [20 + 20 * seed]}, seed=seed)
    row = cell(content(2, made), run="mep-eq10-12", xi_eval=16, metric="pgd50", main=True)
    assert (row["ours"], row["seeds"]) == (pytest.approx(30), 2)
    spread = 200**0.5  # of 20 and 40
    assert (row["low"], row["high"]) == (pytest.approx(30 - spread), pytest.approx(30 + spread))


def test_minutes_are_those_of_the_whole_training_and_of_all_seeds(tmp_path: Path) -> None:
    made = results(tmp_path, seeds=2)
    put_run(made, "cs-12", WORSE, seed=0)  # 1 + 2 minutes
    put_run(made, "cs-12", WORSE.assign(train_seconds=240.0), seed=1)  # 4 + 4 minutes
    row = cell(content(2, made), run="cs-12", metric="minutes")
    assert (row["ours"], row["paper"], row["label"]) == (5.5, 104, "minutes") and np.isnan(row["low"])


def test_the_extra_row_of_table_2_is_of_its_own_budget(tmp_path: Path) -> None:
    made = results(tmp_path)
    put_run(made, "mep-eq10-12", WORSE)
    for xi, correct in ((16.0, 30), (12.0, 36)):
        counts = {(CLEAN, "none"): [70], ("pgd50", "none"): [correct]}
        put_accuracy(made, Need("mep-eq10-12", "accuracy", "best", xi), counts)
    frame = content(2, made).query("run == 'mep-eq10-12' and metric == 'pgd50' and main")
    assert list(frame["xi_eval"]) == [16, 12] and list(frame["ours"]) == pytest.approx([30, 36])
    assert frame["paper"].iloc[0] == 35.52 and np.isnan(frame["paper"].iloc[1])


@pytest.mark.parametrize(
    ("clean", "fgsm", "pgd10", "expected"),
    [
        ([0.7, 0.8, 0.8], [0.5, 0.5, 0.6], [0.4, 0.4, 0.01], 1),
        ([0.7, 0.8], [0.5, 0.4], [0.4, 0.3], 0),
        ([0.1, 0.1], [0.1, 0.1], [0.1, 0.1], -1),
        ([0.6, 0.1], [0.5, 0.1], [0.4, 0.1], -1),
        ([0.7, 0.8], [0.7, 0.8], [0.1, 0.1], 1),
    ],
    ids=["collapses", "stable", "never learns", "forgets all", "affected from the start"],
)
def test_the_mark_of_table_1(
    clean: list[float], fgsm: list[float], pgd10: list[float], expected: int, tmp_path: Path
) -> None:
    made = results(tmp_path)
    put_run(made, "fd-a100-12", history(clean, fgsm, pgd10))
    row = cell(content(1, made), run="fd-a100-12", metric="co", main=True)
    assert (row["ours"], row["paper"], row["label"], row["which"]) == (expected, 1, "CO", "best")
    assert (row["node"], row["alpha3"]) == ("A", 100)


def test_a_best_checkpoint_that_is_the_last_has_no_other(tmp_path: Path) -> None:
    made = results(tmp_path)
    put_run(made, "fd-b200-12", history([0.6, 0.7], [0.4, 0.4], [0.3, 0.35]))
    put_accuracy(made, Need("fd-b200-12", "accuracy", "last"), {(CLEAN, "none"): [70]})
    frame = content(3, made)
    stable = frame[frame["run"] == "fd-b200-12"]
    assert list(stable["which"]) == ["best", "best"] and stable["ours"].iloc[0] == pytest.approx(70)
    assert frame["main"].sum() == 6 and np.isnan(frame["xi_here"].iloc[0])


def test_nothing_measured(tmp_path: Path) -> None:
    with pytest.raises(MissingResultError, match="nothing of table 4 is measured yet; 'coprobe paper --scale demo "):
        content(4, results(tmp_path))


def test_a_run_of_another_recipe_is_not_taken_for_the_planned_one(tmp_path: Path) -> None:
    made = results(tmp_path)
    put_run(made, "mep-16", WORSE)
    path = made.run("mep-16").directory / "recipe.json"
    write_json(path, {**made.run("mep-16").about(), "epochs": 99})
    with pytest.raises(InputError, match="is not the run that the plan has"):
        content(4, made)


def test_an_unknown_table() -> None:
    for ask in (needs, lambda number: about(number, results(Path("none")))):
        with pytest.raises(InputError, match="unknown table '8'"):
            ask(8)


def test_a_scale_without_an_attack_or_data_set(tmp_path: Path) -> None:
    wanted = [need for need in (*needs(5), *needs(6)) if need.run in ("atas-10", "origin")]
    made = make_results(tmp_path, TINY, ["atas-10", "origin"], wanted)
    assert set(content(5, made)["metric"]) == {CLEAN, "fgsm", "pgd10", "pgd20", "pgd50", "cw", "aa"}
    frame = content(6, made)
    is_measured = frame.groupby("dataset")["ours"].agg(lambda ours: ours.notna().all())
    assert dict(is_measured) == {"CIFAR-10": True, "CIFAR-100": False}
    assert frame[frame["main"]]["paper"].notna().all()


def test_complete_results_leave_no_cell_empty(tmp_path: Path) -> None:
    numbers = (2, 3, 6)
    wanted = [need for number in numbers for need in needs(number)]
    made = make_results(tmp_path, "paper", {need.run for need in wanted}, wanted)
    for number in numbers:
        frame = content(number, made)
        assert frame["ours"].notna().all()
        compared = frame[frame["paper"].notna()]
        assert len(compared) == len(published(number)), number
        np.testing.assert_allclose(compared["difference"], compared["ours"] - compared["paper"])


def test_what_is_said_below_a_table(tmp_path: Path) -> None:
    small, whole = (results(tmp_path, scale) for scale in (TINY, SCALES["paper"]))
    said = "\n".join(about(5, small))
    for sentence in (
        "Scale demo: digits, in no time; n = 60, seed 0.",
        "digits stands for CIFAR-10 here.",
        "ξ and noise are the paper's and stand for 3.5 times as much here.",
        "α3 is the paper's and stands for 0.1 times as much here.",
        "The method fgsm stands for FGSM-MEP here.",
        "APGD-CE stands for AA here.",
        "column APGD-T has no counterpart",
        "ATAS and ZeroGrad train as long as the others",
        "Checkpoints: best of ATAS, ZeroGrad, C.Smooth, Ours-FD; last of Ours-CO.",
        "means over 5 draws",
        "At ξ_T = 10 the paper's Ours-CO is below its Ours-FD in AA",
    ):
        assert sentence in said
    assert "CIFAR-100 has no counterpart here." in about(6, small)
    assert about(6, replace(whole, seeds=3)) == [
        f"Scale paper: {SCALES['paper'].about}; all test images, 3 seeds.",
        "Checkpoints: last of Origin.",
        "Noise is added after the attack; accuracies under noise are means over 5 draws.",
    ]
    assert not [line for line in about(1, whole) if "here" in line or "Noise" in line]
