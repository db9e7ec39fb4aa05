"""The figures, tables and claims in the repository are those of the results in the repository."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from coprobe.paper import Results, scale_of
from coprobe.paper.claims import judged, markdown
from coprobe.paper.figures import FIGURES
from coprobe.paper.results import MissingResultError
from coprobe.paper.tables import TABLES, content

ROOT = Path(__file__).resolve().parents[2]
SCALES = ("demo", "small")


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not measured names the directory of the runs as it was named."""
    monkeypatch.chdir(ROOT)


def results(scale: str) -> Results:
    return Results(Path("benchmarks/campaign/results") / scale, scale_of(scale))


def same(make: Callable[[], pd.DataFrame], path: Path) -> None:
    """A file is there exactly if the results are, and says what they say."""
    try:
        frame = make()
    except MissingResultError:
        assert not path.exists()
        pytest.skip("not measured yet")
    made = pd.read_csv(io.StringIO(frame.to_csv(index=False)), keep_default_na=False, na_values=[""])
    committed = pd.read_csv(path, keep_default_na=False, na_values=[""])
    pd.testing.assert_frame_equal(made, committed, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("number", FIGURES)
@pytest.mark.parametrize("scale", SCALES)
def test_a_figure_shows_what_its_runs_say(scale: str, number: int) -> None:
    picture = FIGURES[number]
    directory = ROOT / "figures" / scale
    same(lambda: picture.content(results(scale)), directory / f"{picture.name}.csv")
    assert all((directory / f"{picture.name}{suffix}").stat().st_size > 1000 for suffix in (".png", ".pdf"))


@pytest.mark.slow
@pytest.mark.parametrize("number", TABLES)
@pytest.mark.parametrize("scale", SCALES)
def test_a_table_says_what_its_runs_say(scale: str, number: int) -> None:
    same(lambda: content(number, results(scale)), ROOT / "figures" / scale / f"tab{number}.csv")


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
def test_the_claims_are_judged_from_the_runs(scale: str) -> None:
    frame = judged(results(scale))
    directory = ROOT / "figures" / scale
    assert markdown(frame) == (directory / "claims.md").read_text(encoding="utf-8")
    same(lambda: frame, directory / "claims.csv")
