"""A measurement that was interrupted goes on where it was: what comes out is what comes out in one go."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from coprobe.attacks import AdversarialExamples
from coprobe.cli import main
from coprobe.metrics import Accuracy, ChannelActivations, Noise
from coprobe.models import Classifier, build
from coprobe.probe import Probe
from tests.toys import EPSILON, Overfitted, checkpoint, grey

ATTACKS = ("fgsm", "pgd:2", "cw:2")


def probe(**settings: Any) -> Probe:
    return Probe(checkpoint(Overfitted()), grey(12), EPSILON, batch_size=5, say=lambda text: None, **settings)


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets the attack of a spec be interrupted in its second batch, from now on or, without any, no more."""
    craft = AdversarialExamples.craft
    at: list[str] = []

    def torn(self: AdversarialExamples, attack: Any, batches: Iterator[Any]) -> Iterator[Any]:
        for number, crafted in enumerate(craft(self, attack, batches)):
            if number and attack.spec in at:
                raise KeyboardInterrupt
            yield crafted

    monkeypatch.setattr(AdversarialExamples, "craft", torn)

    def let(spec: str = "") -> None:
        at[:] = [spec]

    return let


MEASURED: dict[str, Callable[[Probe], Any]] = {
    "evaluate": lambda p: p.evaluate(ATTACKS, [Noise(), Noise("gauss", 0.1)], 2).frame,
    "mask": lambda p: p.mask(compare=("variance",), attacks=ATTACKS).evaluation.frame,
    "transfer": lambda p: p.transfer([checkpoint(Overfitted(robust=True))], ATTACKS).frame,
    "several": lambda p: pd.concat(
        [one.frame for one in p.measure(Accuracy(attacks=ATTACKS), ChannelActivations(nodes=("A",), attack="pgd:2"))]
    ),
}


@pytest.mark.parametrize("place", ["cache", "unfinished"])
@pytest.mark.parametrize("what", MEASURED)
def test_finished_attacks_are_not_run_again(
    what: str, place: str, tmp_path: Path, attacks: list[str], interrupted: Callable[..., None]
) -> None:
    wanted = MEASURED[what](probe())
    interrupted("cw:2")
    with pytest.raises(KeyboardInterrupt):
        MEASURED[what](probe(**{place: tmp_path}))
    kept = {file.name.partition("-")[0] for file in tmp_path.glob("*.parquet")}
    assert "part" in kept
    attacks.clear()
    interrupted()
    found = MEASURED[what](probe(**{place: tmp_path}))
    pd.testing.assert_frame_equal(found, wanted, check_exact=True)
    again = {"cw:2"} if what != "mask" or place == "cache" else {"cw:2", "pgd:10:rule=always"}
    assert set(attacks) == again
    assert not [*tmp_path.glob("part-*")] and bool([*tmp_path.iterdir()]) == (place == "cache")


def test_all_in_one_pass_where_nothing_is_kept_and_attack_by_attack_else(tmp_path: Path, attacks: list[str]) -> None:
    probe().evaluate(("fgsm", "pgd:2"))
    assert attacks == ["fgsm", "pgd:2"] * 3
    attacks.clear()
    probe(unfinished=tmp_path).evaluate(("fgsm", "pgd:2"))
    assert attacks == ["fgsm"] * 3 + ["pgd:2"] * 3


def test_clean_images_are_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    forward = Overfitted.forward
    for place in (None, tmp_path):
        passes: list[int] = []
        made = probe(unfinished=place, plain=True)
        made.check_nodes(())
        monkeypatch.setattr(Overfitted, "forward", lambda self, x, p=passes: (p.append(len(x)), forward(self, x))[1])
        made.evaluate(("fgsm", "pgd:2", "cw:2"))
        monkeypatch.setattr(Overfitted, "forward", forward)
        counts.append(sum(passes))
    assert counts[0] == counts[1]


def test_another_measurement_finds_nothing_of_it(
    tmp_path: Path, attacks: list[str], interrupted: Callable[..., None]
) -> None:
    interrupted("pgd:2")
    with pytest.raises(KeyboardInterrupt):
        probe(unfinished=tmp_path).evaluate(("fgsm", "pgd:2"))
    interrupted()
    for other in (probe(unfinished=tmp_path, seed=1), probe(unfinished=tmp_path, plain=True)):
        attacks.clear()
        other.evaluate(("fgsm", "pgd:2"))
        assert attacks == ["fgsm"] * 3 + ["pgd:2"] * 3
    attacks.clear()
    said: list[str] = []
    Probe(checkpoint(Overfitted()), grey(12), EPSILON, batch_size=5, unfinished=tmp_path, say=said.append).evaluate(
        ("fgsm", "pgd:2")
    )
    assert (
        attacks == ["pgd:2"] * 3
        and said.count("1 of 2 parts of this measurement are there from one that was interrupted") == 1
    )


def test_what_members_did_is_that_of_all_parts(tmp_path: Path, interrupted: Callable[..., None]) -> None:
    specs = ("fgsm", "apgd-ce", "cw:2")
    wanted = probe().evaluate(specs).frame.attrs
    interrupted("cw:2")
    with pytest.raises(KeyboardInterrupt):
        probe(unfinished=tmp_path).evaluate(specs)
    interrupted()
    found = probe(unfinished=tmp_path).evaluate(specs).frame.attrs
    assert found["attacks"] == wanted["attacks"] == list(specs) and found.keys() == wanted.keys()
    for row, other in zip(found["stages"], wanted["stages"], strict=True):
        assert {**row, "seconds": 0, "share": 0} == {**other, "seconds": 0, "share": 0}
    assert found.get("blind") == wanted.get("blind")


def test_the_same_command_goes_on(
    tmp_path: Path,
    attacks: list[str],
    interrupted: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COPROBE_CACHE", str(tmp_path / "cache"))
    facts = {"width": 2, "num_classes": 10, "in_channels": 1}
    made = type(checkpoint(Overfitted()))(Classifier(build("resnet18", **facts)).eval(), "resnet18", facts)
    made.save(tmp_path / "c.pt")
    how = "--data digits --limit 20 --batch-size 10 --plain --json --attacks fgsm,pgd:2,cw:2"
    line = ["evaluate", str(tmp_path / "c.pt"), *how.split()]
    assert main(line) == 0
    wanted = json.loads(capsys.readouterr().out)["rows"]
    interrupted("cw:2")
    assert main(line) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "coprobe: error: interrupted"
    old = tmp_path / "cache" / "unfinished" / "part-accuracy-0.parquet"
    old.touch()
    os.utime(old, (0, time.time() - 31 * 24 * 3600))
    interrupted()
    attacks.clear()
    assert main(line) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["rows"] == wanted and set(attacks) == {"cw:2"}
    assert "2 of 3 parts of this measurement are there from one that was interrupted" in captured.err
    assert [*(tmp_path / "cache" / "unfinished").iterdir()] == []


class Noisy(nn.Module):
    """A network that draws random numbers in every pass."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.convolution, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.convolution(x + 0.3 * torch.randn_like(x))).mean((2, 3))
        return self.linear(features * 200)


def test_a_random_network_draws_the_same_where_results_are_kept(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(400, 3, 16, 16, generator=generator), torch.randint(0, 10, (400,), generator=generator)
    settings = {"epsilon": 8 / 255, "batch_size": 100, "say": lambda text: None}
    once, kept = (Probe(Noisy(), images, cache=place, **settings).evaluate(ATTACKS[:2]) for place in (None, tmp_path))
    assert once.frame["correct"].tolist() == kept.frame["correct"].tolist()
