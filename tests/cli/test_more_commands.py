"""`increments` and `transfer`, and evaluation over several draws of the noise, end to end."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from coprobe.attacks import AdversarialExamples, parse
from coprobe.checkpoint import load
from coprobe.data import load as load_data
from coprobe.metrics.accuracy import Noise
from coprobe.probe import Probe
from tests.cli.test_commands import parse as parse_json


def probe(path: str, **settings: Any) -> Probe:
    return Probe(load(path), load_data("digits", "test", limit=20), **settings)


def test_increments_are_those_of_the_library(two: Path, coprobe: Any) -> None:
    rows = parse_json(coprobe("increments tiny.pt --limit 20 --attack pgd:3 --node B --node A --seed 2 --json").out)
    frame = pd.DataFrame(rows["rows"])
    assert list(frame["node"].unique()) == ["B", "A"] and list(frame["step"].unique()) == [0, 1, 2, 3]
    expected = probe("tiny.pt", seed=2).increments(["B", "A"], "pgd:3")
    for node in "AB":
        shown = frame[frame["node"] == node].pivot(index="step", columns="channel", values="s")
        assert shown.to_numpy() == pytest.approx(expected.s(node), rel=1e-12)
    assert frame[frame["step"] == 0]["s_step"].isna().all() and (frame[frame["step"] == 0]["s"] > 0).all()


def test_increments_shows_where_and_how_much(two: Path, coprobe: Any) -> None:
    out = coprobe("increments tiny.pt --limit 20 --attack pgd:2").out
    increments = probe("tiny.pt").increments(["A"], "pgd:2")
    shown = [line.split() for line in out.splitlines() if line.split()[:1] == ["A"]]
    assert [row[1] for row in shown] == ["0", "1", "2"]
    s = increments.s("A")[2]
    expected = [s.sum(), increments.s_step("A")[2].sum(), s.max()]
    assert shown[2][2:] == [*(f"{value:.3g}" for value in expected), str(s.argmax())]
    assert len(shown[0]) == 5  # nothing before step 0


def test_transfer_measures_every_model_on_the_images_of_the_first(two: Path, coprobe: Any) -> None:
    shutil.copytree(two / "co", two / "other")
    (two / "other" / "checkpoint.pt").replace(two / "other.pt")
    given = parse_json(coprobe("transfer co tiny.pt other.pt --eps 60 --limit 20 --attacks pgd:2 --json").out)
    correct = {(row["target"], row["attack"]): row["correct"] for row in given["rows"]}
    source, data = load("co").model, load_data("digits", "test", limit=20)
    x, y = data.images.float() / 255, data.labels
    attacked = Probe(load("co"), data, 60 / 255).model
    (batch,) = AdversarialExamples(attacked, data, [parse("pgd:2", 60 / 255)])
    x_adv = batch.images["pgd:2"]
    for name, model in (("co", source), ("tiny.pt", load("tiny.pt").model)):
        assert correct[name, "clean"] == (model(x).argmax(1) == y).sum()
        assert correct[name, "PGD-2"] == (model(x_adv).argmax(1) == y).sum()
    assert correct["other.pt", "PGD-2"] == correct["co", "PGD-2"], "the same weights in another file"
    digests = given["provenance"]["targets"]
    assert list(digests) == ["co", "tiny.pt", "other.pt"] and digests["co"] == digests["other.pt"] != digests["tiny.pt"]


@pytest.mark.slow
def test_evaluate_averages_over_draws(two: Path, coprobe: Any) -> None:
    line = "evaluate tiny.pt --limit 20 --attacks fgsm --noise none --noise gauss:90"
    given = parse_json(coprobe(f"{line} --noise-draws 4 --json").out)["rows"]
    noises = [Noise(), Noise("gauss", 90 / 255)]
    frame = probe("tiny.pt").evaluate(["fgsm"], noises, noise_draws=4).frame
    for row in given:
        attack = {"clean": "clean", "FGSM": "fgsm"}[row["attack"]]
        drawn = frame[(frame["attack"] == attack) & (frame["noise"] == row["noise"])]["accuracy"]
        assert row["accuracy"] == pytest.approx(drawn.mean())
        assert len(drawn) == (1 if row["noise"] == "none" else 4)
        assert row["spread"] is None if len(drawn) == 1 else row["spread"] == pytest.approx(drawn.std())
    assert coprobe(f"{line} --noise-draws 4").out.count(" ± ") == 2
    assert " ± " not in coprobe(line).out
    single = parse_json(coprobe(f"{line} --json").out)["rows"]
    first = frame[frame["noise_draw"] == 0]["accuracy"]
    assert [row["accuracy"] for row in single] == pytest.approx(list(first))
