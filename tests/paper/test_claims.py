"""A made-up world in which every claim holds, and for every claim a change to it that refutes this one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from coprobe.cli import main
from coprobe.core import results as store
from coprobe.errors import InputError
from coprobe.metrics.accuracy import wilson
from coprobe.paper.claims import CLAIMS, CONTROLS, chosen, judged, markdown, needs
from coprobe.paper.claims.record import Estimate, at_least, at_most, conclude
from coprobe.paper.needs import Need
from coprobe.paper.runs import RUNS, SCALES
from tests.paper.made import make_results
from tests.paper.world import CO, COLLAPSE, CONCENTRATED, FAILED, LOW, NONE, SPREAD, World

ALL = (*CLAIMS, *CONTROLS)
IDS = [claim.id for claim in ALL]


def verdict(id: str, world: World) -> str:
    return chosen([id])[0].judge(world).verdict  # type: ignore[arg-type]


#: What it takes for a claim to hold beyond the world as it is.
HOLDS = {"C45": {"seeds": 3}}
REFUTED: dict[str, list[dict[str, Any]]] = {
    "C01": [{"factors": {"mep-12": (1.5, 4, 3, 2, 2)}}, {"jump": COLLAPSE - 3, "drift": 0.2}],
    "C02": [{"drift": 0.1}],
    "C03": [{"factors": {"mep-12": (5, 4, 3, 2, 2)}}],
    "C04": [{"factors": {"mep-12-preact": (1.5, 4, 3, 2, 2)}}, {"factors": {"mep-12-c100": (3, 4, 1.5, 2, 2)}}],
    "C05": [{"t_act": {"mep-12": (0.999,) * 5 + (0.01,) * 11}}, {"t_act": {"mep-12": (0.9,) * 2 + (0.01,) * 14}},
            {"t_act": {"mep-12": (0.999,) * 2 + (0.2,) * 14}}],
    "C06": [{"t_act": {"fd-b200-12": (0.2,) + (0.01,) * 15}}],
    "C07": [{"jaccard": (0.59, 0.95)}, {"jaccard": (0.8, 0.89)}],
    "C08": [{"masks": {"T_act > 0.99 *[!n]": 0.06}}, {"masks": {"T_act > 0.99 clean": 0.84}}],
    "C09": [{"masks": {"T_act > 0.5 aa": 0.1, "T_act > 0.5 cw": 0.1}}],
    "C10": [{"masks": {"T_act > 0.1 clean": 0.77}}],
    "C11": [{"masks": {"T_act > 0.5 clean": 0.91}}],
    "C12": [{"masks": {"variance aa": 0.41}}, {"masks": {"variance clean": 0.87}}],
    "C13": [{"masks": {"variance clean": 0.83}}],
    "C14": [{"changes": (0.9, 0.05)}, {"changes": (2.0, -0.3)}],
    "C15": [{"marks": {"fd-c400-12": NONE}}, {"marks": {"fd-b*": CO}}],
    "C16": [{"marks": {"fd-b100-12": NONE}}, {"marks": {"fd-b1000-12": FAILED}}],
    "C17": [{"marks": {"fd-a400-12": CO}}, {"marks": {"fd-d100-12": FAILED}}],
    "C18": [{"stable": 0.2}, {"accuracy": {"fd-b300-12 aa *": 0.32}}, {"accuracy": {"fd-b300-12 clean *": 0.76}}],
    "C19": [{"marks": {"fd-b200-14": CO}}, {"marks": {"fd-b200-16-c100": CO}},
            {"marks": {"fd-b200-10": CO}, "absent": ["*-c100"]}],
    "C20": [{"accuracy": {"cs-12 aa none *": 0.31}}, {"accuracy": {"mep-eq10-16 cw *": 0.31}},
            {"accuracy": {"cs-14 fgsm U(16) *": 0.32}}, {"accuracy": {"cs-16-c100 clean *": 0.73}}],
    "C21": [{"seconds": {"fd-b200-12": 104}}, {"seconds": {"cs-12": 104}}, {"seconds": {"cs-12": 126}}],
    "C22": [{"marks": {"mep-8": CO}}],
    "C23": [{"marks": {"co-10-8": NONE}}, {"marks": {"co-10-8": FAILED}}],
    "C24": [{"marks": {"co-1-8": CO}}],
    "C25": [{"marks": {"co-20-8": CO}}],
    "C26": [{"marks": {"co-var10-8": CO}, "accuracy": {"co-var10-8 clean *": 0.53}}],
    "C27": [{"accuracy": {"mep-12 clean U(16) *": 0.86}}, {"accuracy": {"fd-b200-12 clean U(16) *": 0.69}},
            {"accuracy": {"origin clean U(16) *": 0.85}}],
    "C28": [{"accuracy": {"fd-b200-12 clean none *": 0.79}}],
    "C29": [{"accuracy": {"mep-12 cw U(16) *": 0.30}}],
    "C30": [{"accuracy": {"mep-eq10-12 pgd50 none 12 *": 0.10}}, {"accuracy": {"mep-eq10-12 pgd50 none 16 *": 0.10}}],
    "C31": [{"accuracy": {"mep-eq10-12 aa U(16) 12 *": 0.43}}, {"accuracy": {"mep-12 fgsm U(16) 16 *": 0.02}}],
    "C32": [{"accuracy": {"cs-14 apgd_t U(16) *": 0.61}}, {"accuracy": {"atas-10 clean *": 0.89}}],
    "C33": [{"accuracy": {"mep-16 aa Gauss(12) *": 0.61}}],
    "C34": [{"accuracy": {"mep-16 pgd50 U(12) *": 0.29}}, {"accuracy": {"mep-16 clean U(10) *": 0.87}},
            {"accuracy": {"mep-16 clean Gauss(14) *": 0.865}}],
    "C35": [{"accuracy": {"noise-16 pgd50 none *": 0.06}}, {"accuracy": {"noise-16 clean U(16) *": 0.82}}],
    "C36": [{"accuracy": {"mep-noise-16 pgd50 none *": 0.01}}, {"accuracy": {"mep-noise-16 pgd50 none *": 0.55}}],
    "C37": [{"accuracy": {"mep-noise-both-16 pgd50 none *": 0.22}}],
    "C38": [{"increments": {"mep-16": SPREAD}}, {"increments": {"mep-noise-16": CONCENTRATED}}],
    "C39": [{"increments": {"mep-16": SPREAD}}, {"increments": {"noise-16": (999.0,) * 16}}],
    "C40": [{"accuracy": {"origin aa U(16) *": 0.02}}, {"accuracy": {"origin-c100 fgsm U(16) *": 0.06}}],
    "C41": [{"accuracy": {"mep-12 cw none 8 cs-12": 0.70}}, {"accuracy": {"mep-12 fgsm none 16 ": 0.60}}],
    "C42": [{"accuracy": {"mep-12-c100 aa none 16 cs-16-c100": 0.70}}],
    "C43": [{"accuracy": {"rs-12 pgd50 none *": 0.06}}, {"accuracy": {"rs-14 pgd50 U(16) *": 0.29}}],
    "C44": [{"accuracy": {"origin clean none *": 0.92}}, {"accuracy": {"cs-16 clean none *": 0.67}}],
    "C45": [{"seeds": 3, "marks": {"mep-12": (CO, NONE, CO)}}, {"seeds": 3, "marks": {"mep-8": (NONE, NONE, CO)}}],
    "K1": [{"accuracy": {"mep-12 pgd:50:rule=always U(16) 16 ": 0.30}}],
    "K2": [{"accuracy": {"mep-12 pgd-eot:50 U(16) *": 0.30}}],
    "K3": [{"accuracy": {"mep-12 pgd:50:step-size=4:restarts=10 U(16) *": 0.30}}],
    "K4": [{"draws": (0.6, 0.6, 0.3, 0.6, 0.6)}],
    "K5": [{"accuracy": {"mep-12 pgd:50:rule=always U(16) 16 cs-16": 0.30}}],
}  # fmt: skip


def test_there_are_45_claims_and_5_controls_in_order() -> None:
    assert [claim.id for claim in CLAIMS] == [f"C{number:02}" for number in range(1, 46)]
    assert [claim.id for claim in CONTROLS] == [f"K{number}" for number in range(1, 6)]
    for claim in ALL:
        assert claim.statement.endswith(".")
        assert claim.measurement.endswith(".")
        assert claim.paper()


@pytest.mark.parametrize("id", IDS)
def test_a_claim_is_confirmed_where_the_world_is_as_the_paper_says(id: str) -> None:
    finding = chosen([id])[0].judge(World(**HOLDS.get(id, {})))  # type: ignore[arg-type]
    assert (finding.verdict, finding.why) == ("confirmed", "")
    assert any(character.isdigit() for character in finding.value)


@pytest.mark.parametrize(("id", "changes"), [(id, changes) for id, cases in REFUTED.items() for changes in cases])
def test_a_claim_is_refuted_where_one_of_its_conditions_fails(id: str, changes: dict[str, Any]) -> None:
    finding = chosen([id])[0].judge(World(**changes))  # type: ignore[arg-type]
    assert finding.verdict == "refuted"
    assert finding.why.startswith("not so: ")
    assert "asked: " in finding.why


def test_every_claim_has_a_world_that_refutes_it() -> None:
    assert list(REFUTED) == IDS


@pytest.mark.parametrize("id", IDS)
def test_without_its_runs_a_claim_is_not_yet_measured(id: str) -> None:
    finding = chosen([id])[0].judge(World(absent=["*"]))  # type: ignore[arg-type]
    assert finding.verdict == "not yet measured"
    assert "is not trained" in finding.why


@pytest.mark.parametrize("claim", ALL, ids=IDS)
def test_a_claim_needs_what_it_reads(claim) -> None:
    worlds = [World(**changes) for changes in [HOLDS.get(claim.id, {}), *REFUTED[claim.id]]]
    for world in worlds:
        claim.judge(world)
    assert set().union(*(world.reads for world in worlds)) == set(claim.needs)


#: Claims about a collapsed model at 12 and at 16/255, where none collapsed.
@pytest.mark.parametrize(
    ("run", "ids"),
    [
        (
            "mep-12",
            "C01 C02 C03 C05 C07 C08 C09 C10 C11 C12 C13 C14 C15 C16 C19 C27 C28 C29 C30 C31 C41 K1 K2 K3 K4 K5",
        ),
        ("mep-16", "C33 C34 C36 C38 C39"),
        ("mep-1[0246]", "C32"),
        ("rs-*", "C43"),
    ],
)
def test_where_nothing_collapsed_claims_about_the_collapse_are_undecided(run: str, ids: str) -> None:
    for id in ids.split():
        finding = chosen([id])[0].judge(World(marks={run: NONE}))  # type: ignore[arg-type]
        assert finding.verdict == "undecided", id
        assert "collapsed" in finding.why, id
        assert "at this scale" in finding.why, id


@pytest.mark.parametrize(
    ("id", "changes", "why"),
    [
        ("C01", {"collapse": 3}, "the collapse came in epoch 3"),
        ("C02", {"collapse": 10}, "the rule needs 10 epochs before it"),
        ("C06", {"kinds": {"fd-b200-12": "not robust"}}, "is not robust at this scale"),
        ("C08", {"masked": {"T_act > 0.99": 0}}, "nothing is masked"),
        ("C09", {"masked": {"T_act > 0.5": 2}}, "both masks are the same"),
        ("C10", {"masked": {"T_act > 0.1": 4}}, "both masks are the same"),
        ("C14", {"t_act": {"mep-12": LOW}}, "0 of 16 channels"),
        ("C15", {"marks": {"fd-c100-12": (CO, NONE)}, "seeds": 2}, "fd-c100-12: CO, no CO"),
        ("C18", {"marks": {"fd-b*": CO}}, "no training"),
        ("C23", {"marks": {"mep-8": CO}}, "the baseline is not stable without L_co"),
        ("C24", {"marks": {"mep-8": CO, "co-1-8": CO}}, "the baseline is not stable without L_co"),
        ("C27", {"n": 100}, "CO -0.1 pp"),
        ("C32", {"marks": {"mep-10": NONE}}, "no collapsed model at 10/255"),
        ("C43", {"marks": {"rs-10": NONE}}, "no collapsed model at 10/255"),
        ("C44", {"scale": SCALES["small"]}, "width 16"),
        ("C45", {"seeds": 2}, "2 of at least 3 seeds"),
        ("K2", {"scale": SCALES["demo"]}, "anticipates noise of 16/255"),
        ("K4", {"draws": (0.6, 0.6)}, "2 draws"),
    ],
)  # fmt: skip
def test_undecided_says_why(id: str, changes: dict[str, Any], why: str) -> None:
    finding = chosen([id])[0].judge(World(**changes))  # type: ignore[arg-type]
    assert finding.verdict == "undecided"
    assert why in finding.why


def test_too_few_images_leave_a_close_call_open_and_not_a_clear_one() -> None:
    changes = {"accuracy": {"mep-12 cw U(16) *": 0.30}}
    assert verdict("C29", World(n=100, **changes)) == "undecided"
    assert verdict("C29", World(n=100)) == "confirmed"
    assert verdict("C29", World(n=10**7, **changes)) == "refuted"


def test_several_seeds_widen_an_interval_of_one_standard_deviation_to_two() -> None:
    # the drop of 0.1 points ± 0.6 is below the 1 point that is allowed, ± 1.2 is not
    world = World(n=20_000, accuracy={"origin clean U(16) *": 0.7})
    assert verdict("C27", world) == "confirmed"
    assert verdict("C27", replace(world, seeds=3)) == "undecided"


def test_estimates() -> None:
    # Newcombe 1998, method 10: 56/70 against 48/80 gives 0.0524 to 0.3339
    first, second = (Estimate(k / n, *wilson(k, n)) for k, n in ((56, 70), (48, 80)))
    gap = first - second
    assert (round(gap.low, 4), round(gap.high, 4)) == (0.0524, 0.3339)
    assert abs(Estimate(-0.1, -0.3, 0.2)) == Estimate(0.1, 0.0, 0.3)
    assert abs(Estimate(-0.2, -0.3, -0.1)) == Estimate(0.2, 0.1, 0.3)
    assert Estimate(0.2, 0.1, 0.3) * 0.5 == Estimate(0.1, 0.05, 0.15)
    assert at_least("x", Estimate(0.2, 0.1, 0.3), 0.15).passed is None
    assert at_least("x", Estimate(0.2, 0.1, 0.3), 0.1).passed is True
    assert at_most("x", Estimate(0.2, 0.1, 0.3), 0.05).passed is False
    assert at_most("x", Estimate(0.2, 0.1, 0.3), 0.05).found == "x +20.0 pp [10.0, 30.0]"
    assert at_least("x", float("nan"), 0.1).passed is None


def test_one_failure_outweighs_what_is_open_and_long_lists_are_cut() -> None:
    checks = [at_least(str(number), 0.0, 1.0) for number in range(9)]
    finding = conclude([at_least("open", Estimate(0.2, 0.1, 0.3), 0.2), *checks])
    assert finding.verdict == "refuted"
    assert finding.why.endswith("3 +0.0 pp (asked: at least 100 pp); and 5 more")
    assert finding.value.endswith("; and 4 more")


def test_needs_are_merged_and_of_planned_runs_only() -> None:
    wanted = needs()
    assert len({need.place for need in wanted}) == len(wanted)
    assert {need.run for need in wanted} <= set(RUNS)
    transfer = next(need for need in wanted if need.kind == "transfer" and need.xi == 16)
    assert transfer.attacks == ("fgsm", "pgd50", "cw", "aa", "pgd:50:rule=always")


#: The small scale with one seed and few images.
ONCE = replace(SCALES["small"], seeds={}, images=100)


def test_judged_from_files_and_as_markdown(tmp_path) -> None:
    claims = chosen(["c01", "C04", "C08", "C15"])
    results = make_results(tmp_path, ONCE, needs=[need for claim in claims for need in claim.needs])
    frame = judged(results, claims)
    assert frame["verdict"].tolist() == ["confirmed", "not yet measured", "undecided", "confirmed"]
    assert frame["paper"].iloc[3] == "Table 1: without CO B/200, B/400, B/1000"
    assert set(frame["scale"]) == {"small"}
    assert "run mep-12-c100 is not part of scale small" in frame["why"].iloc[1]
    text = markdown(frame)
    assert text.startswith("| id | statement | ours | paper | verdict |\n|---|")
    assert text.count("\n| C") == 4
    assert "**C08, undecided.** " in text
    assert "**C01" not in text


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["demo", "paper"])
def test_every_claim_can_be_judged_at_every_scale(scale: str, tmp_path) -> None:
    frame = judged(make_results(tmp_path, scale, needs=needs()))
    missing = set(frame[frame["verdict"] == "not yet measured"]["id"])
    assert missing == ({"C04", "C42"} if scale == "paper" else {"C04", "C19", "C42"})


def test_a_damaged_result_is_named(tmp_path) -> None:
    need = Need("mep-12", "channels")
    results = make_results(tmp_path, "small", ["mep-12"], [need])
    path = results.path(need)
    path.write_text(path.read_text(encoding="utf-8").replace("A", "B", 1), encoding="utf-8")
    with pytest.raises(store.DamagedError, match=r"channels-last-16\.csv"):
        judged(results, chosen(["C05"]))


def test_unknown_claims_get_the_nearest_names() -> None:
    with pytest.raises(InputError, match="unknown claim 'C99'; did you mean C"):
        chosen(["C01", "C99"])


def test_the_command(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setitem(SCALES, "small", ONCE)
    runs = str(make_results(tmp_path / "runs", "small", ["mep-12", "mep-8"], needs()).directory)
    assert (
        main(
            ["claims", "--scale", "small", "--runs", runs, "--only", "C03,C22,C01,C23", "--out", str(tmp_path / "c.md")]
        )
        == 0
    )
    out, err = capsys.readouterr()
    titles = ["confirmed (2)", "refuted (1)", "not yet measured (1)"]
    assert [line for line in out.splitlines() if line in titles] == titles
    assert "C23: run co-10-8 is not trained; 'coprobe paper --scale small --runs" in " ".join(out.split())
    assert "wrote" in err
    assert (tmp_path / "c.md").read_text(encoding="utf-8").count("| C") == 4
    assert main(["claims", "--scale", "small", "--runs", runs, "--only", "C22", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["id"], row["verdict"], row["seeds"]) == ("C22", "confirmed", "seed 0")
