"""The demo keeps what it promises, trained for real (about a minute and a half on one thread)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from coprobe import demo


@pytest.mark.slow
def test_the_demo(tmp_path: Path) -> None:
    """One test, so that the models are trained once however many processes share the suite."""
    story = demo.run(tmp_path)
    training_ends_with_the_collapse(pd.read_csv(tmp_path / "co" / "history.csv"))
    the_model_collapses_and_its_twin_does_not(story)
    masking_the_salient_channels_raises_accuracy(story)
    the_figures_show_the_numbers_of_the_story(story, tmp_path)


def training_ends_with_the_collapse(history: pd.DataFrame) -> None:
    *before, last = history.itertuples()
    assert not any(demo.COLLAPSING.stops_after(row.fgsm, row.pgd10) for row in before)
    assert demo.COLLAPSING.stops_after(last.fgsm, last.pgd10) or last.epoch == demo.COLLAPSING.epochs


def the_model_collapses_and_its_twin_does_not(story: demo.Story) -> None:
    co, stable = (story.diagnoses[name] for name in ("co", "stable"))
    assert co.verdict == "CO-affected"
    assert stable.verdict == "stable"
    assert stable.evaluation.accuracy("pgd:10") > co.evaluation.accuracy("pgd:10")


def masking_the_salient_channels_raises_accuracy(story: demo.Story) -> None:
    for found in story.diagnoses.values():
        table = found.statistics.table()
        above = table[(table["node"] == "A") & (table["t_act"] > 0.5)]
        assert found.salient["A"] == sorted(above["channel"])
    assert story.diagnoses["co"].salient["A"]
    masked = story.maskings["co"].evaluation
    # By how much is chaotic: to 32 to 88 %, over eleven trainings; in one of them a random mask did as well.
    assert masked.accuracy("pgd:10", mask="T_act > 0.5") > masked.accuracy("pgd:10") + 0.05


def the_figures_show_the_numbers_of_the_story(story: demo.Story, out: Path) -> None:
    names = {path.name for path in story.figures}
    assert names == {f"fig{number}.{suffix}" for number in ("01", "03", "04") for suffix in ("png", "pdf", "csv")}
    drawn = pd.read_csv(out / "figures" / "fig03.csv")
    table = story.diagnoses["co"].statistics.table()
    expected = table[table["node"] == "A"].set_index("channel")["t_act"].sort_index()
    shown = drawn[drawn["kind"] == "CO-affected"].set_index("channel")["t_act"].sort_index()
    pd.testing.assert_series_equal(shown, expected)
