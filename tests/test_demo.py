"""The demo keeps what it promises, trained for real (about a minute and a half on one thread)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from coprobe import demo


def test_the_demo(tmp_path: Path) -> None:
    """One test, so that the models are trained once however many processes share the suite."""
    story = demo.run(tmp_path)
    the_model_collapses_and_its_twin_does_not(story)
    few_channels_carry_the_collapse_and_masking_them_undoes_it(story)
    the_figures_show_the_numbers_of_the_story(story, tmp_path)


def the_model_collapses_and_its_twin_does_not(story: demo.Story) -> None:
    co, stable = (story.diagnoses[name].evaluation for name in ("co", "stable"))
    assert co.accuracy("pgd:10") <= 0.05
    assert co.accuracy("fgsm") >= co.accuracy("pgd:10") + 0.20
    assert stable.accuracy("pgd:10") >= co.accuracy("pgd:10") + 0.30
    assert story.diagnoses["co"].verdict == "CO-affected"
    assert story.diagnoses["stable"].verdict == "stable"


def few_channels_carry_the_collapse_and_masking_them_undoes_it(story: demo.Story) -> None:
    assert 1 <= len(story.diagnoses["co"].salient["A"]) <= 8
    assert story.diagnoses["stable"].salient["A"] == []
    masked = story.maskings["co"].evaluation
    salient, chance = (masked.accuracy("pgd:10", mask=mask) for mask in ("T_act > 0.5", "random"))
    assert salient >= masked.accuracy("pgd:10") + 0.30
    assert salient >= chance + 0.20


def the_figures_show_the_numbers_of_the_story(story: demo.Story, out: Path) -> None:
    names = {path.name for path in story.figures}
    assert names == {f"fig{number}.{suffix}" for number in ("01", "03", "04") for suffix in ("png", "pdf", "csv")}
    drawn = pd.read_csv(out / "figures" / "fig03.csv")
    table = story.diagnoses["co"].statistics.table()
    expected = table[table["node"] == "A"].set_index("channel")["t_act"].sort_index()
    shown = drawn[drawn["kind"] == "CO-affected"].set_index("channel")["t_act"].sort_index()
    pd.testing.assert_series_equal(shown, expected)
    history = pd.read_csv(out / "co" / "history.csv")
    assert len(history) <= demo.COLLAPSING.epochs
    last = history.iloc[-1]
    assert demo.COLLAPSING.stops_after(last["fgsm"], last["pgd10"])
