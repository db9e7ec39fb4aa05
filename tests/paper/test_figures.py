"""Every figure from made-up results: from what it declares, no more and no less, with the columns that are drawn."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from coprobe.core import results as store
from coprobe.data import title
from coprobe.metrics.accuracy import wilson
from coprobe.paper.figures import FIGURES, PaperFigure, baseline, caption
from coprobe.paper.needs import ATTACKS
from coprobe.paper.results import MissingResultError, Results
from coprobe.paper.runs import SCALES
from tests.paper.made import make_results

#: The demo scale with numbers that stay.
MADE = replace(
    SCALES["demo"],
    knobs={**SCALES["demo"].knobs, "width": 16, "limit_train": 512, "held_out": 64, "epochs": 7},
    stretch=2.5,
    images=60,
)
BARS = {"model", "kind", "epsilon", "noise", "attack", "n", "accuracy", "low", "high"}
CHANGES = BARS | {"accuracy_noisy", "change", "change_low", "change_high"}
CURVES = {"series", "seed", "epoch", "clean", "adversarial", "outcome", "xi_eval"}
#: The columns of every figure that is made from data.
COLUMNS = {
    1: {"run", "seed", "epoch", "clean", "fgsm", "pgd10", *(f"v_act_{node}" for node in "ABCDE")},
    3: {"run", "kind", "node", "channel", "t_act", "v_act", "images"},
    4: {"attack", "mask", "masked", "n", "correct", "accuracy", "low", "high"},
    5: CURVES,
    6: CURVES,
    8: CHANGES,
    9: BARS | {"spread"},
    10: {"model", "kind", "node", "channel", "step", "s", "s_step", "images"},
    11: CHANGES,
    12: {
        "source", "source_xi", "epsilon", "noise", "attack", "n", "accuracy", "low", "high", "white_box", "clean",
    },
}  # fmt: skip
SCHEMATICS = {2: {"node", "path", "stage", "channels", "height", "width"}, 7: set()}


def runs_of(figure: PaperFigure) -> list[str]:
    """The runs that a figure declares, in the order of the plan."""
    named = {*figure.runs, *(name for need in figure.needs for name in (need.run, *need.sources))}
    return sorted(named)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


def declared(folder: Path, number: int) -> Results:
    """Results in which there is what a figure declares, and nothing else."""
    figure, directory = FIGURES[number], folder / str(number)
    if directory.exists():
        return Results(directory, MADE)
    return make_results(directory, MADE, runs_of(figure), figure.needs)


@pytest.fixture
def drawn() -> Iterator[list[Figure]]:
    figures: list[Figure] = []
    yield figures
    plt.close("all")


def test_there_are_twelve_of_which_two_are_schematics() -> None:
    assert sorted([*COLUMNS, *SCHEMATICS]) == list(FIGURES) == list(range(1, 13))
    assert {number for number, figure in FIGURES.items() if figure.is_schematic} == set(SCHEMATICS)
    assert [FIGURES[number].name for number in (1, 12)] == ["fig01", "fig12"]


@pytest.mark.slow
@pytest.mark.parametrize("number", FIGURES)
def test_what_is_declared_is_enough_to_draw(folder: Path, drawn: list[Figure], number: int) -> None:
    figure, results = FIGURES[number], declared(folder, number)
    frame = figure.content(results)
    assert set(frame) >= (COLUMNS | SCHEMATICS)[number] and len(frame) > 3
    if number in COLUMNS:
        assert set(frame) == COLUMNS[number]
    about = caption(results, figure)
    drawn.append(figure.draw(frame, about=about))
    assert any(text.get_text() == about for text in drawn[0].findobj(lambda artist: hasattr(artist, "get_text")))


@pytest.mark.slow
@pytest.mark.parametrize("number", COLUMNS)
def test_what_is_declared_is_needed(folder: Path, tmp_path: Path, number: int) -> None:
    figure = FIGURES[number]
    declared(folder, number)
    results = Results(Path(shutil.copytree(folder / str(number), tmp_path / "runs")), MADE)
    for need in figure.needs:
        here = need.on(results.which(need.run, need.which))
        facts = store.provenance_of(results.path(here))
        text = facts.read_text()
        facts.unlink()
        with pytest.raises(MissingResultError, match=f"{need.kind} of run {need.run} .*'coprobe paper --scale demo "):
            figure.content(results)
        facts.write_text(text)
    for name in figure.runs:
        directory = results.run(name).directory
        directory.rename(tmp_path / "away")
        with pytest.raises(MissingResultError, match=f"run {name} is not trained; 'coprobe paper --scale demo "):
            figure.content(results)
        (tmp_path / "away").rename(directory)
    figure.content(results)


def test_schematics_need_no_runs(tmp_path: Path) -> None:
    results = Results(tmp_path / "none", SCALES["paper"])
    places = FIGURES[2].content(results).set_index("node")
    assert places.loc["A", "channels"] == 64 and places.loc["E", "channels"] == 512
    assert FIGURES[2].content(replace(results, scale=MADE))["channels"].max() == 128
    assert caption(results, FIGURES[7]) == "scale paper"


def test_captions_say_scale_images_and_seeds(tmp_path: Path) -> None:
    demo, paper = Results(tmp_path / "a", MADE), Results(tmp_path / "b", SCALES["paper"], seeds=3)
    assert caption(demo, FIGURES[1]) == (
        "scale demo: digits, 512 training images, 7 epochs, 64 held-out images, seed 0"
    )
    assert caption(demo, FIGURES[9]) == "scale demo: digits, 512 training images, 7 epochs, n = 60, seed 0"
    assert caption(paper, FIGURES[9]) == (
        f"scale paper: {title('cifar10')}, all training images, 110 epochs, n = all test images, 3 seeds"
    )
    assert (baseline(demo.scale), baseline(paper.scale)) == ("FGSM", "FGSM-MEP without Eq. 10")


def test_numbers_are_those_of_the_results(folder: Path) -> None:
    results = declared(folder, 9)
    frame = FIGURES[9].content(results)
    row = frame.query("model == 'baseline' and attack == 'PGD-50' and noise == 'none'").iloc[0]
    found = results.find(next(need for need in FIGURES[9].needs if need.run == "mep-12"))
    correct = found.query("attack == 'pgd50' and noise == 'none'")["correct"].item()
    assert row["accuracy"] == correct / 60 and (row["low"], row["high"]) == wilson(correct, 60)
    quiet, noisy = frame["noise"].unique()
    assert quiet == "none" and "40" in noisy and set(frame["epsilon"]) == {40}
    assert dict(zip(frame["model"], frame["kind"], strict=True)) == {
        "with L_stable": "stable", "baseline": "CO-affected", "clean-trained": "clean-trained",
    }  # fmt: skip


def test_figure_4_averages_random_masks(folder: Path) -> None:
    results = declared(folder, 4)
    frame = FIGURES[4].content(results)
    found = results.find(FIGURES[4].needs[0])
    random = found.query("mask == 'random' and attack == 'clean'")["correct"]
    row = frame.query("mask == 'random' and attack == 'clean'").iloc[0]
    assert len(random) == 5 and row["accuracy"] == pytest.approx(random.mean() / 60)
    assert set(frame["attack"]) == {results.label(attack) for attack in ("clean", *ATTACKS)}


def test_figure_8_says_what_noise_changes(folder: Path) -> None:
    frame = FIGURES[8].content(declared(folder, 8))
    assert (frame["change"] == frame["accuracy_noisy"] - frame["accuracy"]).all()
    assert set(frame["epsilon"]) == {30, 40}
    row = frame.iloc[0]
    error = sum(share * (1 - share) / row["n"] for share in (row["accuracy"], row["accuracy_noisy"])) ** 0.5
    assert row["change_high"] - row["change"] == pytest.approx(1.96 * error)
    assert row["change"] - row["change_low"] == pytest.approx(1.96 * error)


def test_figure_10_is_in_means_over_values(folder: Path) -> None:
    results = declared(folder, 10)
    frame = FIGURES[10].content(results)
    assert set(frame["step"]) == set(range(1, 11)) and not frame["s_step"].isna().any()
    raw = results.find(FIGURES[10].needs[0]).query("node == 'A' and channel == 3 and step == 10").iloc[0]
    row = frame.query("node == 'A' and channel == 3 and step == 10").iloc[0]
    assert row["s"] == raw["difference_squared"] / (raw["channels"] * raw["positions"])


def test_figure_12_has_the_white_box_beside_every_source(folder: Path) -> None:
    frame = FIGURES[12].content(declared(folder, 12))
    assert set(frame["source_xi"]) == {20, 30, 40} and set(frame["epsilon"]) == {20, 30, 40}
    assert "clean" not in set(frame["attack"])
    assert (frame.groupby(["epsilon", "noise", "attack"])[["white_box", "clean"]].nunique() == 1).all(axis=None)


def test_figure_3_shows_the_best_checkpoint_only_if_it_is_another_one(tmp_path: Path) -> None:
    needs = FIGURES[3].needs
    runs = ["mep-12", "fd-b200-12"]
    fell = FIGURES[3].content(make_results(tmp_path / "a", MADE, runs, needs))
    stayed = FIGURES[3].content(make_results(tmp_path / "b", MADE, runs, needs, fates={"mep-12": "stable"}))
    assert fell["run"].nunique() == 3 and stayed["run"].nunique() == 2
    assert set(fell["kind"]) == {"CO-affected", "stable"} and set(fell["node"]) == {"A"}


def test_figures_of_several_seeds(tmp_path: Path) -> None:
    for number in (1, 6, 9):
        figure = FIGURES[number]
        results = make_results(tmp_path / str(number), MADE, runs_of(figure), figure.needs, seeds=2)
        frame = figure.content(results)
        if number == 1:
            assert frame["run"].nunique() == 4 and set(frame["seed"]) == {0, 1}
        assert np.isfinite(frame.drop(columns="spread", errors="ignore").select_dtypes("number")).all(axis=None)
        figure.draw(frame, about=caption(results, figure))
    plt.close("all")


def test_a_run_that_did_not_converge_is_shown_as_such(tmp_path: Path) -> None:
    figure = FIGURES[6]
    frame = figure.content(make_results(tmp_path, MADE, figure.runs, fates={"co-var10-8": "failed"}))
    found = frame.groupby("series")["outcome"].unique().map(list).to_dict()
    assert found == {"by T_act (2 channels)": ["CO-affected"], "by variance (2 channels)": ["did not converge"]}
