"""The members of AutoAttack on the command line, and what each of them did."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pyautoattack.autoattack as package
import pytest
import torch
from rich.cells import cell_len

from coprobe.attacks.autoattack import MEMBERS
from coprobe.checkpoint import load
from coprobe.data import load as load_data
from coprobe.probe import Probe
from tests.cli.test_commands import parse

COUNTS = ("member", "n", "images", "broken", "accuracy", "gained")


#: What makes the network, and the command line that names it and its images.
NETWORK = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(1024, 10)

    def forward(self, x):
        return self.linear(x.flatten(1))
"""
PATHS = ("net.pt", "twin.pt")
HOW = "--model net.py:Net --data digits --limit 60 --eps 30"


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The members with 3 steps and 5 queries, which leave something to each other."""
    for runner, knob, few in (
        (package.APGDAttack, "n_iter", 3),
        (package.APGDAttack_targeted, "n_iter", 3),
        (package.FABAttack_PT, "n_iter", 3),
        (package.SquareAttack, "n_queries", 5),
    ):
        perturb = runner.perturb

        def briefly(self: Any, x: Any, y: Any, perturb: Any = perturb, knob: str = knob, few: int = few) -> Any:
            setattr(self, knob, few)
            return perturb(self, x, y)

        monkeypatch.setattr(runner, "perturb", briefly)


@pytest.fixture(autouse=True)
def _nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory with two networks that know the mean image of every class; they differ in their scale."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    Path("net.py").write_text(NETWORK)
    data = load_data("digits", "train")
    images = data.images.flatten(1) / 255
    means = torch.stack([images[data.labels == label].mean(0) for label in range(10)])
    for name, scale in zip(PATHS, (1, 1e3), strict=True):
        torch.save({"linear.weight": scale * means, "linear.bias": -scale / 2 * means.square().sum(1)}, name)


def stages_by_library(path: str, attack: str) -> list[dict[str, Any]]:
    probe = Probe(load(path, model="net.py:Net"), load_data("digits", "test", limit=60), 30 / 255)
    stages = probe.evaluate([attack]).frame.attrs["stages"]
    assert {stage["attack"] for stage in stages} == {attack}
    return counts_of(stages)


def counts_of(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: stage[key] for key in COUNTS} for stage in stages]


def test_members_are_chosen_for_every_aa_and_its_name_says_so(coprobe: Any) -> None:
    line = f"evaluate net.pt {HOW} --attacks fgsm,aa,aa:fast --aa-members square,apgd-ce"
    given = parse(coprobe(f"{line} --json --out t.parquet").out)
    label = "AA (APGD-CE + Square)"
    assert [row["attack"] for row in given["rows"]] == ["clean", "FGSM", label, "AA-fast"]
    assert [(stage["attack"], stage["member"]) for stage in given["stages"]] == [
        (label, "apgd-ce"), (label, "square"), ("AA-fast", "apgd-ce"), ("AA-fast", "apgd-t"),
    ]  # fmt: skip
    assert given["provenance"]["attacks"] == ["fgsm", "aa:members=apgd-ce+square", "aa:fast"]
    accuracy = {row["attack"]: row["accuracy"] for row in given["rows"]}
    for attack in (label, "AA-fast"):
        mine = [stage for stage in given["stages"] if stage["attack"] == attack]
        assert accuracy["clean"] - sum(stage["gained"] for stage in mine) == pytest.approx(accuracy[attack])
        assert mine[-1]["accuracy"] == pytest.approx(accuracy[attack]) and mine[0]["broken"] > 0
        assert all(stage["model"] == "net.pt" and stage["seconds"] > 0 for stage in mine)
    assert counts_of(given["stages"][:2]) == stages_by_library("net.pt", "aa:members=apgd-ce+square")
    assert given["provenance"]["stages"] == given["stages"] == pd.read_parquet("t.parquet").attrs["stages"]


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_stages_are_in_what_is_written(coprobe: Any, suffix: str) -> None:
    given = parse(coprobe(f"evaluate net.pt {HOW} --attacks aa:fast --json --out t.{suffix}").out)
    written = json.loads(Path("t.provenance.json" if suffix == "csv" else "t.json").read_text())
    assert written["stages"] == given["stages"] and len(given["stages"]) == 2


def test_all_members_in_whatever_order_are_the_standard_version(coprobe: Any) -> None:
    line = f"evaluate net.pt {HOW} --attacks aa"
    plain, chosen = (
        parse(coprobe(f"{line}{members} --json").out) for members in ("", " --aa-members square,fab-t,apgd-ce,apgd-t")
    )
    assert plain["rows"] == chosen["rows"] and plain["rows"][1]["attack"] == "AA"
    assert counts_of(plain["stages"]) == counts_of(chosen["stages"])
    assert [stage["member"] for stage in chosen["stages"]] == list(MEMBERS)


def test_a_table_for_people_after_the_accuracies(coprobe: Any) -> None:
    line = f"evaluate net.pt twin.pt {HOW} --attacks fgsm,aa:fast"
    out = coprobe(line).out
    assert max(map(cell_len, out.splitlines())) <= 80
    titles = re.findall(r"^\S+: .*", out, re.MULTILINE)
    of_a_net = ["accuracy (%)", "the stages of AA-fast"]
    assert [title.split(",")[0] for title in titles] == [f"{path}: {what}" for path in PATHS for what in of_a_net]
    shown = [row.split() for row in out.splitlines() if row.startswith(" APGD-")]
    expected = [stage for path in PATHS for stage in stages_by_library(path, "aa:fast")]
    assert all(any(stage["broken"] for stage in expected if stage["member"] == member) for member in MEMBERS[:2])
    assert [row[:5] for row in shown] == [
        [
            stage["member"].upper(),
            str(stage["images"]),
            str(stage["broken"]),
            f"{100 * stage['accuracy']:.2f}",
            f"{100 * stage['gained']:.2f}",
        ]
        for stage in expected
    ]
    stages = parse(coprobe(f"{line} --json").out)["stages"]
    assert [stage["model"] for stage in stages] == [path for path in PATHS for _ in MEMBERS[:2]]


def test_a_transfer_has_the_stages_of_its_source(coprobe: Any) -> None:
    line = f"transfer net.pt twin.pt {HOW} --attacks aa --aa-members apgd-t,apgd-ce"
    given = parse(coprobe(f"{line} --json").out)
    assert [stage["model"] for stage in given["stages"]] == ["net.pt", "net.pt"]
    assert counts_of(given["stages"]) == stages_by_library("net.pt", "aa:members=apgd-ce+apgd-t")
    assert {row["attack"] for row in given["rows"]} == {"clean", "AA (APGD-CE + APGD-T)"}
    assert given["provenance"]["stages"] == given["stages"]
    assert coprobe(line).out.count("the stages of AA (APGD-CE + APGD-T)") == 1


def test_other_attacks_have_no_stages(coprobe: Any) -> None:
    given = parse(coprobe(f"evaluate net.pt {HOW} --attacks fgsm,apgd-ce --json").out)
    assert given["stages"] == [] and given["provenance"]["stages"] == []
    assert "stages" not in coprobe(f"evaluate net.pt {HOW} --attacks fgsm,apgd-ce").out


@pytest.mark.parametrize("command", ["evaluate", "transfer"])
def test_help_names_what_there_is(coprobe: Any, command: str) -> None:
    out = " ".join(coprobe(f"{command} --help").out.split())
    assert "aa:fast" in out and "apgd-ce, apgd-t, fab-t, square" in out
