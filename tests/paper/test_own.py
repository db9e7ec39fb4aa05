"""The paper's figures from runs: which numbers reach them, and that attacks are not run twice."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from coprobe.errors import InputError
from coprobe.paper.own import OwnModel, draw, model_at
from coprobe.probe import Probe
from coprobe.training import Run
from tests.toys import EPSILON, Overfitted, checkpoint, grey


def probe(robust: bool = False, cache: Path | None = None) -> Probe:
    recipe = {"data": "grey", "eps_train": 16.0, "seed": 0}
    return Probe(checkpoint(Overfitted(robust), recipe=recipe), grey(12), EPSILON, cache=cache)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    history = pd.DataFrame({"epoch": [0, 1], "clean": 0.5, "fgsm": 0.4, "pgd10": 0.3, "v_act_A": [1.0, 2.0]})
    directory = tmp_path / "my_run"
    directory.mkdir()
    history.to_csv(directory / "history.csv", index=False)
    return directory


def test_figure_1_draws_the_histories(run: Path) -> None:
    figure, frame = draw(1, [OwnModel("one", probe(), Run(run)), OwnModel("two", probe(), Run(run))])
    assert list(frame["run"]) == ["one", "one", "two", "two"]
    assert list(frame["v_act_A"]) == [1, 2, 1, 2]
    assert figure.get_supxlabel() == "grey, trained at 16/255, seed 0"


def test_figure_1_needs_a_run() -> None:
    with pytest.raises(InputError, match="ckpt: figure 1 needs a run directory"):
        draw(1, [OwnModel("ckpt", probe())])


def test_figure_3_attacks_once_per_model_and_finds_it_again(tmp_path: Path, attacks: list[str]) -> None:
    models = [OwnModel(name, probe(name == "good", tmp_path), None) for name in ("bad", "good")]
    figure, frame = draw(3, models)
    assert attacks == ["fgsm", "pgd:10", "pgd:10:rule=always"] * 2
    again = draw(3, models)[1]
    assert len(attacks) == 6
    pd.testing.assert_frame_equal(frame, again)
    kinds = frame.groupby("run", sort=False)["kind"].first()
    assert dict(kinds) == {"bad": "CO-affected", "good": "stable"}
    assert set(frame["node"]) == {"A"} and len(frame) == 8
    salient = frame[frame["t_act"] > 0.5]
    assert list(zip(salient["run"], salient["channel"], strict=True)) == [("bad", 3)]
    assert figure.get_supxlabel() == "grey, n = 12, ε = 16/255, the training budget, seed 0"


def test_figure_4_is_found_again(tmp_path: Path, attacks: list[str]) -> None:
    models = [OwnModel("bad", probe(cache=tmp_path))]
    frame = draw(4, models)[1]
    assert sorted(attacks) == ["aa", "cw:20", "fgsm", "pgd:10:rule=always", "pgd:50"]
    again = draw(4, models)[1]
    assert len(attacks) == 5
    pd.testing.assert_frame_equal(frame, again)
    assert list(frame["attack"].unique()) == ["clean", "FGSM", "PGD-50", "C&W", "AA"]
    assert list(frame["mask"].unique()) == ["none", "T_act > 0.99", "T_act > 0.5", "T_act > 0.1", "variance", "random"]
    assert set(frame["run"]) == {"bad"} and set(frame["n"]) == {12}
    row = frame.query("attack == 'PGD-50' and mask == 'T_act > 0.5'").iloc[0]
    assert (row["masked"], row["accuracy"]) == (1, 1)


def test_figures_that_cannot_be_drawn() -> None:
    with pytest.raises(InputError, match="unknown figure '2'; choose from 1, 3, 4"):
        draw(2, [])


def test_models_are_called_by_directory_or_file(run: Path, tmp_path: Path) -> None:
    found = model_at(run, lambda path: probe())
    assert found.label == "my_run" and found.run is not None and found.run.directory == run
    file = tmp_path / "best.pt"
    file.write_text(json.dumps({}))
    assert (model_at(file, lambda path: probe()).label, model_at(file, lambda path: probe()).run) == ("best", None)
