"""Measuring a trained run: the numbers are those of the probe, and nothing is measured twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from coprobe.checkpoint import load
from coprobe.core import results as store
from coprobe.data import load as load_data
from coprobe.errors import InputError
from coprobe.metrics.accuracy import Noise
from coprobe.paper.measure import DRAWS, Measurer, due, noise_of
from coprobe.paper.needs import Need
from coprobe.paper.results import Results
from coprobe.paper.runs import SCALES
from coprobe.probe import Probe
from tests.paper.made import put_run
from tests.paper.test_results import STABLE, WORSE
from tests.paper.tiny import TINY

NEED = Need("mep-12", "accuracy", "last", 16, ("fgsm", "pgd10"), ("none", "U(16)"))
#: ξ_E = 16 of the paper at the tiny scale.
XI = 40


@pytest.fixture
def measurer(trained: Path) -> Measurer:
    return Measurer(Results(trained, TINY), "mep-12", 0, torch.device("cpu"))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The attacks that are measured, in their order."""
    seen: list[str] = []
    measure = Measurer._accuracy

    def count(self: Measurer, need: Need, source: str, attack: str) -> pd.DataFrame:
        seen.append(f"{source}{attack}")
        return measure(self, need, source, attack)

    monkeypatch.setattr(Measurer, "_accuracy", count)
    return seen


def probe(directory: Path, name: str = "checkpoint.pt", images: int = TINY.images, **settings: Any) -> Probe:
    return Probe(load(directory / name), load_data("digits", "test", limit=images), XI / 255, **settings)


def content(measurer: Measurer, need: Need) -> bytes:
    return measurer.results.path(need).read_bytes()


def test_noise_is_the_papers_at_the_scale() -> None:
    assert noise_of("none", TINY).kind == "none"
    assert noise_of("U(16)", TINY).spec == "uniform:40"
    assert noise_of("Gauss(10)", SCALES["paper"]).spec == "gauss:10"


def test_accuracies_are_those_of_the_probe(trained: Path) -> None:
    # so many images that whatever network the training ended with, some counts differ
    measurer = Measurer(Results(trained, replace(TINY, images=100)), "mep-12", 0, torch.device("cpu"))
    measurer.measure(NEED)
    frame = measurer.results.get(NEED).fillna({"source": ""})
    noises = [Noise.parse("none"), Noise.parse(f"uniform:{XI}")]
    wanted = probe(trained / "mep-12", images=100).evaluate(["fgsm", "pgd:2"], noises, noise_draws=DRAWS).frame
    keys = ["attack", "noise", "noise_draw"]
    ours = frame.assign(attack=frame["spec"], noise_draw=frame["draw"]).replace({"noise": {"U(16)": f"uniform:{XI}"}})
    for counted in ("correct", "n"):
        pd.testing.assert_series_equal(ours.set_index(keys)[counted], wanted.set_index(keys)[counted], check_like=True)
    assert len(ours) == 3 * (1 + DRAWS) and ours["correct"].nunique() > 1
    assert frame["attack"].unique().tolist() == ["clean", "fgsm", "pgd10"] and set(frame["source"]) == {""}


def test_an_attack_more_leaves_the_others_and_takes_its_place(measurer: Measurer, counted: list[str]) -> None:
    measurer.measure(NEED)
    whole = content(measurer, NEED)
    measurer.results.path(NEED).unlink()
    counted.clear()
    measurer.measure(replace(NEED, attacks=("pgd10",)))
    assert counted == ["clean", "pgd10"]
    measurer.measure(NEED)
    assert counted == ["clean", "pgd10", "fgsm"]
    assert content(measurer, NEED) == whole
    measurer.measure(NEED)
    assert len(counted) == 3


@pytest.mark.slow
def test_a_noise_more_leaves_the_others_and_takes_its_place(measurer: Measurer) -> None:
    both = replace(NEED, attacks=(), noises=("none", "U(16)", "Gauss(10)"))
    measurer.measure(both)
    whole = content(measurer, both)
    measurer.results.path(both).unlink()
    measurer.measure(replace(both, noises=("none", "Gauss(10)")))
    measurer.measure(replace(both, noises=("none", "U(16)")))
    assert measurer.results.missing(both) == []
    measurer.results.path(both).unlink()
    measurer.measure(replace(both, noises=("none", "Gauss(10)")))
    measurer.measure(both)
    assert content(measurer, both) == whole


@pytest.mark.slow
def test_an_interrupted_measurement_goes_on_with_what_is_left(
    measurer: Measurer, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = store.write
    left = [2]

    def interrupted(*arguments: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        write(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "write", interrupted)
        measurer.measure(NEED)
    assert counted == ["clean", "fgsm", "pgd10"]
    assert measurer.results.missing(NEED) == [("", "pgd10")]
    counted.clear()
    measurer.measure(NEED)
    assert counted == ["pgd10"]
    stopped = content(measurer, NEED)
    measurer.results.path(NEED).unlink()
    measurer.measure(NEED)
    assert content(measurer, NEED) == stopped


def test_transfer_crafts_on_the_best_checkpoint_of_the_source(
    measurer: Measurer, trained: Path, counted: list[str]
) -> None:
    need = Need("mep-12", "transfer", "last", 16, ("fgsm",), ("none", "U(16)"), ("cs-8",))
    measurer.measure(need)
    assert counted == ["cs-8clean", "cs-8fgsm"]
    frame = measurer.results.get(need)
    assert set(frame["source"]) == {"cs-8"} and len(frame) == 2 * (1 + DRAWS)
    target = load(trained / "mep-12" / "checkpoint.pt")
    noises = [Noise.parse("none"), Noise.parse(f"uniform:{XI}")]
    wanted = probe(trained / "cs-8", "best.pt").transfer([target], ["fgsm"], noises, noise_draws=DRAWS).frame
    wanted = wanted[wanted["target"] == str(target.path)]
    assert sorted(frame["correct"]) == sorted(wanted["correct"])
    quiet = frame[(frame["attack"] == "fgsm") & (frame["noise"] == "none")]["correct"]
    assert quiet.tolist() == wanted.query("attack == 'fgsm' and noise == 'none'")["correct"].tolist()


@pytest.mark.slow
def test_channels_and_increments_are_those_of_the_probe(measurer: Measurer, trained: Path) -> None:
    for kind in ("channels", "increments"):
        measurer.measure(Need("mep-12", kind))
    own = probe(trained / "mep-12")
    pd.testing.assert_frame_equal(measurer.results.channels("mep-12").frame, own.activations().frame)
    steps = measurer.results.get(Need("mep-12", "increments")).drop(columns="seed")
    pd.testing.assert_frame_equal(steps, own.increments(("A", "B")).frame)


def test_masking_and_overlap_name_what_the_paper_names(measurer: Measurer) -> None:
    masking, overlap = Need("mep-12", "masking", attacks=("fgsm", "pgd10", "aa")), Need("mep-12", "overlap")
    for need in (masking, overlap):
        measurer.measure(need)
        assert measurer.results.missing(need) == []
    frame = measurer.results.get(masking)
    assert set(frame["attack"]) == {"clean", "fgsm", "pgd10"} and set(frame["n"]) == {TINY.images}
    assert {"none", "variance", "random"} < set(frame["mask"])
    assert measurer.results.get(overlap)["attack"].tolist() == ["pgd:10:rule=always", "fgsm", "pgd:50"]


def test_a_result_says_how_it_was_made(measurer: Measurer) -> None:
    import json

    need = replace(NEED, attacks=(), noises=("none",))
    measurer.measure(need)
    facts = json.loads(store.provenance_of(measurer.results.path(need)).read_text())
    assert (facts["epsilon"], facts["images"], facts["seed"]) == (XI, TINY.images, 0) and facts["seconds"] > 0
    assert len(facts["checkpoint_digest"]) == 16


def test_seeds_measure_their_own_checkpoint_with_their_own_noise(trained: Path) -> None:
    (trained / "mep-12").rename(trained / "mep-12-s1")
    results = Results(trained, TINY, seeds=2)
    recipe = (trained / "mep-12-s1" / "recipe.json").read_text()
    (trained / "mep-12-s1" / "recipe.json").write_text(recipe.replace('"seed": 0', '"seed": 1'))
    need = replace(NEED, attacks=("fgsm",))
    Measurer(results, "mep-12", 1, torch.device("cpu")).measure(need)
    frame = results.find(need, 1)
    noises = [Noise.parse("none"), Noise.parse(f"uniform:{XI}")]
    wanted = probe(trained / "mep-12-s1", seed=1).evaluate(["fgsm"], noises, noise_draws=DRAWS).frame
    assert frame["correct"].tolist() == wanted["correct"].tolist() and results.find(need, 0) is None


def test_what_is_due(tmp_path: Path) -> None:
    results = Results(tmp_path, TINY)
    put_run(results, "mep-12", STABLE)
    put_run(results, "mep-16", WORSE)
    needs = [NEED, NEED.on("best"), replace(NEED, run="mep-16"), replace(NEED, run="mep-16").on("best")]
    assert due(results, needs, "mep-12", 0) == [NEED]  # its best checkpoint is its last
    assert [need.which for need in due(results, needs, "mep-16", 0)] == ["last", "best"]
    results.path(NEED).parent.mkdir()
    results.path(NEED).write_text("")
    store.provenance_of(results.path(NEED)).write_text("")
    with pytest.raises(store.DamagedError, match="damaged"):
        due(results, needs, "mep-12", 0)
    assert due(results, needs, "mep-12", 0, repair=True) == [NEED]


def test_of_a_run_that_diverged_at_once_nothing_is_due(tmp_path: Path) -> None:
    results = Results(tmp_path, TINY)
    put_run(results, "mep-12", STABLE)
    put_run(results, "cs-8", STABLE, epochs=0, best_epoch=0)
    transfer = Need("mep-12", "transfer", attacks=("fgsm",), sources=("cs-8",))
    assert due(results, [Need("cs-8", "channels")], "cs-8", 0) == []
    assert due(results, [transfer], "mep-12", 0) == []


def test_weights_that_are_lost_are_named(measurer: Measurer) -> None:
    measurer.results.run("mep-12").checkpoint.unlink()
    with pytest.raises(InputError, match=r"mep-12: its weights are gone .* the same command trains it again"):
        measurer.measure(NEED)
