"""What the paper shows, chosen by name, counted, and written as far as it can be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from coprobe.core.results import DamagedError
from coprobe.errors import InputError
from coprobe.paper import claims, tables
from coprobe.paper.figures import FIGURES
from coprobe.paper.jobs import plan_jobs
from coprobe.paper.needs import Need
from coprobe.paper.plan import chosen, items, minutes, order_of, overview, render, seconds_per_pass
from coprobe.paper.results import Results
from coprobe.paper.runs import RUNS, SCALES
from tests.paper.made import make_results
from tests.paper.tiny import TINY, do


def names(*only: str) -> list[str]:
    return [item.name for item in chosen(only)]


def test_everything_that_the_paper_shows() -> None:
    assert list(items()) == [*(f"fig{n:02d}" for n in range(1, 13)), *(f"tab{n}" for n in range(1, 8)), "claims"]
    assert names() == list(items())
    assert items()["fig05"].title == FIGURES[5].title and items()["tab5"].title == tables.TABLES[5].title
    assert set(items()["claims"].needs) == {*claims.needs(), *(Need(run, "history") for run in RUNS)}


def test_every_run_of_the_plan_is_needed_by_something() -> None:
    needs = [need for item in items().values() for need in item.needs]
    assert {name for need in needs for name in (need.run, *need.sources)} == set(RUNS)


def test_names_as_people_write_them() -> None:
    assert names("fig3", "tab05", "fig012", "claims") == ["fig03", "tab5", "fig12", "claims"]
    assert names("tab5", "fig3", "fig03") == ["tab5", "fig03"]


@pytest.mark.parametrize(
    ("name", "near"), [("fig13", "fig1"), ("tab0", "tab"), ("claim", "claims"), ("fig", "fig"), ("5", "known")]
)
def test_unknown_names_are_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(InputError, match=f"unknown figure or table '{name}'; .*{near}"):
        chosen([name])


def test_an_order_asks_for_what_the_scale_has(tmp_path: Path) -> None:
    results = Results(tmp_path, TINY)
    order = order_of(results, chosen(["tab6", "fig12"]), device="cpu", repair=True)
    assert {need.run for need in order.needs} == {"origin", "mep-12"}
    assert {need.sources for need in order.needs if need.kind == "transfer"} == {("cs-8", "cs-12", "cs-16")}
    assert (order.directory, order.scale, order.repair) == (tmp_path, TINY, True)
    both = order_of(Results(tmp_path, TINY, {"cifar100": "digits"}), chosen(["tab6"]))
    assert {need.run for need in both.needs} == {"origin", "origin-c100"}
    assert len({need.place for need in order.needs}) == len(order.needs)


@pytest.mark.slow
def test_what_can_be_written_is_and_what_is_missing_is_said(tmp_path: Path) -> None:
    fig9 = FIGURES[9]
    results = make_results(tmp_path / "runs", "demo", [need.run for need in fig9.needs], fig9.needs)
    rendered = render(results, tmp_path / "out", chosen(["fig1", "fig7", "fig9", "tab3", "tab7"]))
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert sorted(path.name for path in rendered.files) == written
    assert {name.split(".")[0] for name in written} == {"fig01", "fig07", "fig09", "tab3"}
    assert {"fig09.png", "fig09.pdf", "fig09.csv", "tab3.md", "tab3.tex", "tab3.csv"} <= set(written)
    assert rendered.missing == {"tab7": f"nothing of table 7 is measured yet; {results.remedy}"}
    assert not list((tmp_path / "out").glob("*.tmp*"))


def test_the_claims_are_written_whatever_there_is(tmp_path: Path) -> None:
    rendered = render(Results(tmp_path, SCALES["demo"]), tmp_path / "out", chosen(["claims"]))
    assert [path.name for path in rendered.files] == ["claims.csv", "claims.md"]
    text = (tmp_path / "out" / "claims.md").read_text(encoding="utf-8")
    assert "C45" in text and "not yet measured" in text and "confirmed" not in text


def test_damage_stops_the_rendering(tmp_path: Path) -> None:
    results = make_results(tmp_path / "runs", "demo", ["mep-12", "fd-b200-12"], FIGURES[3].needs)
    results.path(FIGURES[3].needs[1]).write_text("x")
    with pytest.raises(DamagedError, match="channels-last-16"):
        render(results, tmp_path / "out", chosen(["fig3"]))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_same_results_are_written_the_same_and_say_what_they_are_from(tmp_path: Path) -> None:
    results = make_results(tmp_path / "runs", "demo", ["mep-12", "fd-b200-12"])
    for out in ("a", "b"):
        render(results, tmp_path / out, chosen(["fig1", "tab1"]))
    csv = sorted(path.name for path in (tmp_path / "a").glob("*.csv"))
    assert csv == ["fig01.csv", "tab1.csv"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in csv)
    about = str(Image.open(tmp_path / "a" / "fig01.png").info)
    assert "scale demo: digits" in about and "mep-12, fd-b200-12" in about


def test_the_overview_counts_what_is_there(trained: Path) -> None:
    results = Results(trained, TINY)
    some = chosen(["fig1", "fig3", "fig12"])
    order = order_of(results, some)
    frame = overview(order, some, 0.06).set_index("item")
    counts = frame[["runs", "untrained", "measurements", "unmeasured"]]
    assert counts.loc["fig01"].tolist() == [2, 1, 0, 0]
    assert counts.loc["fig03"].tolist() == [2, 1, 3, 3]
    assert counts.loc["fig12"].tolist() == [4, 2, 6, 6]
    assert frame["minutes"].sum() == pytest.approx(sum(job.passes for job in plan_jobs(order)) * 0.06 / 60)
    (job,) = plan_jobs(order_of(results, some[:1]))
    assert job.name == "train fd-b200-12" and frame.loc["fig01", "minutes"] == pytest.approx(job.passes * 0.001)
    do(replace(order, needs=(Need("mep-12", "channels"),)))
    frame = overview(order, some, 0.06).set_index("item")
    # what is last is best as well, if the best epoch is the last one
    best_is_last = results.which("mep-12", "best") == "last"
    assert frame.loc["fig03", "unmeasured"] == (1 if best_is_last else 2)


def test_with_everything_there_nothing_is_left_to_do(trained: Path) -> None:
    results = Results(trained, TINY)
    only = [replace(chosen(["fig3"])[0], needs=(Need("mep-12", "channels"), Need("mep-12", "channels", "best")))]
    order = order_of(results, only)
    do(order)
    (row,) = overview(order, only, 1.0).to_dict("records")
    assert (row["untrained"], row["measurements"], row["unmeasured"], row["minutes"]) == (0, 2, 0, 0.0)


def test_seeds_are_counted(tmp_path: Path) -> None:
    results = Results(tmp_path, TINY, seeds=3)
    some = chosen(["fig3"])
    (row,) = overview(order_of(results, some), some, 1.0).to_dict("records")
    assert (row["runs"], row["untrained"], row["measurements"], row["unmeasured"]) == (6, 6, 9, 9)


def test_minutes_are_shared_by_the_jobs_at_a_time(tmp_path: Path) -> None:
    jobs = plan_jobs(order_of(Results(tmp_path, TINY), chosen(["fig1"])))
    assert minutes(jobs, 0.6, 2) == pytest.approx(sum(job.passes for job in jobs) * 0.6 / 120)
    assert minutes([], 0.6, 0) == 0


def test_a_pass_takes_a_moment_and_threads_stay(tmp_path: Path) -> None:
    import torch

    threads = torch.get_num_threads()
    assert 0 < seconds_per_pass(order_of(Results(tmp_path, TINY), [])) < 1
    assert torch.get_num_threads() == threads
