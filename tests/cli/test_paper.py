"""`coprobe paper`, `table` and `figure` from the plan's runs: what they print, write and refuse."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.cells import cell_len

from coprobe.paper import engines
from coprobe.paper.figures import FIGURES
from coprobe.paper.jobs import Job, Order
from coprobe.paper.needs import Need
from coprobe.paper.results import Results
from coprobe.paper.runs import SCALES
from coprobe.training.run import Run
from tests.paper.made import make_results
from tests.paper.tiny import TINY, InlineEngine

RUNS = "--scale tiny --runs runs"
DRAW = f"paper {RUNS} --out pictures --only fig3,fig1 --device cpu"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, a scale that takes no time, and an engine in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SCALES, "tiny", TINY)
    monkeypatch.setitem(engines.ENGINES, "local", lambda order, count, gpus: InlineEngine(order))
    return tmp_path


@pytest.fixture
def drawn(place: Path, coprobe: Any, once: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Figures 1 and 3 are there, from nothing; what was printed on the way, on stdout and on stderr."""

    def draw(folder: Path) -> None:
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            result = coprobe(DRAW)
        assert result.code == 0, result.err
        (folder / "said.json").write_text(json.dumps([result.out, result.err]))

    shutil.copytree(once("paper", draw), place, dirs_exist_ok=True)
    return json.loads((place / "said.json").read_text())  # type: ignore[no-any-return]


def made(number: int, *, leave_out: str = "") -> Results:
    """Made-up results of the tiny scale for a figure, without those of a kind."""
    picture = FIGURES[number]
    runs = {*picture.runs, *(name for need in picture.needs for name in (need.run, *need.sources))}
    return make_results(Path("runs"), TINY, sorted(runs), [need for need in picture.needs if need.kind != leave_out])


@pytest.mark.slow
def test_a_figure_from_nothing_and_then_from_what_is_there(place: Path, coprobe: Any, drawn: list[str]) -> None:
    out, err = drawn
    wanted = [f"pictures/{name}.{suffix}" for name in ("fig03", "fig01") for suffix in ("png", "pdf", "csv")]
    assert sorted(out.splitlines()) == sorted(wanted)
    messages = err.splitlines()
    assert re.fullmatch(r"scale tiny: 4 jobs, \d+ at a time, at most about \d+ min", messages[0])
    assert re.fullmatch(r"\[1/4\] train mep-12: \d+ s; about \d+ min left", messages[1]) and len(messages) == 5
    assert json.loads((place / "runs/scale.json").read_text()) == {"scale": "tiny"}
    content = (place / "pictures/fig03.csv").read_bytes()
    second = coprobe(f"{DRAW} --json")
    assert (second.code, second.err) == (0, "") and json.loads(second.out)["files"] == out.splitlines()
    assert (place / "pictures/fig03.csv").read_bytes() == content
    rest = coprobe(f"paper {RUNS} --out pictures --only fig1,fig3,tab7 --plan --json")
    rows = {row["item"]: row for row in json.loads(rest.out)["items"]}
    assert rows["fig01"]["untrained"] == rows["fig03"]["unmeasured"] == rows["fig03"]["minutes"] == 0
    assert (rows["tab7"]["runs"], rows["tab7"]["untrained"]) == (4, 4)


@pytest.mark.slow
def test_the_plan_is_printed_and_nothing_is_done(place: Path, coprobe: Any) -> None:
    result = coprobe(f"paper {RUNS} --plan --jobs 2")
    assert (result.code, result.err) == (0, "") and not list(place.iterdir())
    assert max(map(cell_len, result.out.splitlines())) <= 80
    assert re.search(r"fig01 .* 0/2 +0/0 ", result.out) and re.search(r"claims .* 0/\d\d ", result.out)
    assert "At most about" in result.out and "2 at a time" in result.out
    rows = json.loads(coprobe(f"paper {RUNS} --plan --json --jobs 2").out)
    assert rows["at_once"] == 2 and len(rows["items"]) == 20 and rows["at_work"] == rows["failures"] == {}
    assert rows["items"][0].keys() == {
        "item", "title", "runs", "untrained", "measurements", "unmeasured", "minutes",
    }  # fmt: skip


@pytest.mark.slow
def test_what_is_not_there_yet_is_said(coprobe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "execute", lambda job, order: None)
    result = coprobe(f"paper {RUNS} --only fig1,fig7 --out pictures")
    assert result.code == 0 and "pictures/fig07.png" in result.out and "fig01" not in result.out
    remedy = "'coprobe paper --scale tiny --runs runs' makes it"
    assert f"fig01 is not there yet: run mep-12 is not trained; {remedy}\n" in result.err
    given = json.loads(coprobe(f"paper {RUNS} --only fig1 --out pictures --json").out)
    assert list(given["missing"]) == ["fig01"] and given["files"] == []


def test_what_exists_is_drawn_and_nothing_else_made(place: Path, coprobe: Any) -> None:
    result = coprobe(f"paper {RUNS} --only fig1,fig7 --out pictures --draw")
    assert result.code == 0 and "pictures/fig07.png" in result.out and "fig01 is not there yet" in result.err
    assert not (place / "runs").exists()


def failing(error: Exception) -> Callable[[Job, Order], None]:
    def execute(job: Job, order: Order) -> None:
        raise error

    return execute


@pytest.mark.slow
def test_what_fails_is_told_in_the_end(coprobe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "execute", failing(ZeroDivisionError("by zero")))
    result = coprobe(f"paper {RUNS} --only fig3,fig7 --out pictures")
    assert result.code == 1 and "pictures/fig07.png" in result.out
    last = result.err.splitlines()[-1]
    assert last.startswith(
        "coprobe: error: 4 of 4 jobs failed: train mep-12: ZeroDivisionError: by zero; measure mep-12"
    )


def test_failures_are_kept_until_the_job_is_done(coprobe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(engines, "execute", failing(ZeroDivisionError("by zero")))
        coprobe(f"paper {RUNS} --weights weights --only fig1 --out pictures")
    plan = f"paper {RUNS} --weights weights --only fig1 --plan"
    assert "failed: train mep-12: ZeroDivisionError: by zero\n" in coprobe(plan).out
    assert sorted(json.loads(coprobe(f"{plan} --json").out)["failures"]) == ["train fd-b200-12", "train mep-12"]
    monkeypatch.setattr(engines, "execute", lambda job, order: None)
    coprobe(f"paper {RUNS} --weights weights --only fig1 --out pictures")
    assert "failed" not in coprobe(plan).out


def test_work_in_the_background_is_not_begun_twice(place: Path, coprobe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    niced: list[int] = []
    monkeypatch.setattr("os.nice", niced.append)
    monkeypatch.setattr(engines, "execute", lambda job, order: None)
    line = f"paper {RUNS} --weights weights --only fig1 --out pictures --background"
    with another_process(place / "weights"):
        refused = coprobe(line)
    assert (refused.code, refused.err) == (
        2, "coprobe: error: weights: another process works there; wait for it, or name another\n",
    )  # fmt: skip
    assert niced == [] and not (place / "pictures").exists()
    assert coprobe(line).code == 0 and niced == [19]


def test_who_is_at_work_is_shown(coprobe: Any) -> None:
    run = made(1).run("mep-12")
    plan = f"paper {RUNS} --plan --only fig1"
    with another_process(run.directory):
        assert "at work: mep-12 (measured)\n" in coprobe(plan).out
        about = run.about()
        del about["outcome"]
        (run.directory / "recipe.json").write_text(json.dumps(about))
        run.history.head(1).to_csv(run.directory / "history.csv", index=False)
        assert "at work: mep-12 (epoch 2 of 2)\n" in coprobe(plan).out
    assert "at work" not in coprobe(plan).out


@contextmanager
def another_process(directory: Path) -> Iterator[None]:
    """A process that keeps the directory to itself."""
    code = (
        "import sys\nfrom coprobe.core.files import exclusive\n"
        "with exclusive(sys.argv[1]):\n    print(flush=True)\n    sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin and process.stdout
        process.stdout.readline()
        yield
        process.stdin.close()


@pytest.mark.slow
@pytest.mark.usefixtures("drawn")
def test_damage_is_named_and_repaired(place: Path, coprobe: Any) -> None:
    line = f"paper {RUNS} --only fig3 --out pictures"
    content = (place / "pictures/fig03.csv").read_bytes()
    path = place / "runs/mep-12/stats/channels-last-16.csv"
    path.write_bytes(path.read_bytes()[:100])
    for command in (line, f"{line} --plan", f"figure 3 {RUNS}"):
        result = coprobe(command)
        assert (result.code, result.out) == (2, "")
        assert result.err == (
            "coprobe: error: runs/mep-12/stats/channels-last-16.csv: damaged result; "
            "'coprobe paper --repair' makes it again\n"
        )
    assert coprobe(f"{line} --repair --plan").code == 0 and path.stat().st_size == 100
    result = coprobe(f"{line} --repair")
    assert result.code == 0 and "scale tiny: 1 job, " in result.err
    assert (place / "pictures/fig03.csv").read_bytes() == content


@pytest.mark.slow
@pytest.mark.usefixtures("drawn")
def test_a_run_of_another_recipe_is_refused_and_repaired(coprobe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"paper {RUNS} --only fig1 --out pictures"
    monkeypatch.setitem(SCALES, "tiny", replace(TINY, knobs={**TINY.knobs, "epochs": 1}))
    result = coprobe(line)
    assert result.code == 2 and "mep-12: is not the run that the plan has (--epochs 1 (not 2))" in result.err
    assert coprobe(f"{line} --repair").code == 0 and Run(Path("runs/mep-12")).recipe.epochs == 1


def test_a_statistic_that_is_lacking_says_what_makes_it(coprobe: Any) -> None:
    made(12, leave_out="transfer")
    result = coprobe(f"figure 12 {RUNS} --out pictures")
    assert (result.code, result.out) == (2, "") and not Path("pictures").exists()
    assert result.err == (
        "coprobe: error: transfer of run mep-12 (last checkpoint, 8/255) is not measured; "
        "'coprobe paper --scale tiny --runs runs' makes it\n"
    )


@pytest.mark.slow
def test_figure_8_is_drawn_from_the_papers_runs(coprobe: Any) -> None:
    made(8)
    result = coprobe(f"figure 8 {RUNS} --out pictures")
    assert (result.code, result.err) == (0, "")
    assert sorted(result.out.splitlines()) == [f"pictures/fig08.{suffix}" for suffix in ("csv", "pdf", "png")]
    given = json.loads(coprobe(f"figure 8 {RUNS} --out pictures --json").out)
    drawn = pd.read_csv("pictures/fig08.csv")
    assert len(given["rows"]) == len(drawn) == 2 * 2 * 3 and given["rows"][0]["model"] == drawn["model"].iloc[0]
    assert given["rows"][0]["change"] == pytest.approx(drawn["change"].iloc[0])


def test_table_5_stands_beside_the_papers_numbers(coprobe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with_aa = replace(TINY, attacks={**TINY.attacks, "aa": "apgd-ce"})
    monkeypatch.setitem(SCALES, "tiny", with_aa)
    needs = [Need("mep-12", "accuracy", attacks=("fgsm", "pgd10", "aa"), noises=("U(16)",))]
    make_results(Path("runs"), with_aa, ["mep-12"], needs)
    result = coprobe(f"table 5 {RUNS}")
    assert (result.code, result.err) == (0, "")
    assert "Table 5." in result.out and "Ours-CO" in result.out and "Scale tiny: digits, in no time" in result.out
    written = coprobe(f"table 5 {RUNS} --out tables --json")
    rows = json.loads(written.out)["rows"]
    assert {row["run"] for row in rows if row["ours"] is not None} == {"mep-12"}
    assert {row["metric"] for row in rows} == {"clean", "fgsm", "pgd10", "aa"}
    assert sorted(path.name for path in Path("tables").iterdir()) == ["tab5.csv", "tab5.md", "tab5.tex"]
    assert sorted(written.err.splitlines()) == [f"wrote tables/tab5.{suffix}" for suffix in ("csv", "md", "tex")]
