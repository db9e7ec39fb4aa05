"""The fastest form is measured once, remembered for good, and else the default."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coprobe.core.engine import BatchSize
from coprobe.core.processes import Processes
from coprobe.fast.choice import directory, fastest
from coprobe.fast.classifier import FastClassifier, fast
from coprobe.fast.form import PLAIN, Form
from coprobe.models import Classifier
from tests.fast.networks import assert_same, classifier, pair, refuse, sequential

DEFAULT, PACKED, NCHW = FORMS = [Form(), Form(packed=True), Form(channels_last=False)]


class Clock:
    """Time passes only in passes: by the form, so many seconds for each; where there are none, the pass fails.

    Attributes:
        passes: the forms that were run, and with how many images.
    """

    def __init__(self, seconds: dict[Form, float], comes_out_as: dict[Form, Form] | None = None) -> None:
        self.now = 0.0
        self.passes: list[tuple[Form, int]] = []
        self._seconds, self._comes_out_as = seconds, comes_out_as or {}

    def __call__(self) -> float:
        return self.now

    def make(self, form: Form) -> Classifier:
        clock = self

        class Timed(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                if form not in clock._seconds:
                    raise RuntimeError("out of memory")
                clock.passes.append((form, len(x)))
                clock.now += clock._seconds[form]
                return x.flatten(1)

        made = Classifier(Timed())
        made.form = self._comes_out_as.get(form, form)
        return made


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("COPROBE_CACHE", str(tmp_path / "cache"))
    return directory()


def chosen(clock: Clock, *, weights: int = 1000, side: int = 32, precision: str = "32") -> Form:
    model = Classifier(nn.Sequential(nn.Conv2d(weights, 1000, 1, device="meta")))
    return fastest(FORMS, clock.make, model, torch.rand(3, 1, side, side), precision, clock)


def test_the_fastest_is_measured_once_and_then_remembered(cache: Path) -> None:
    clock = Clock({DEFAULT: 1.0, PACKED: 0.8, NCHW: 1.2})
    assert chosen(clock) == PACKED
    batch = BatchSize().now
    assert clock.passes == [(DEFAULT, batch)] * 3 + [(PACKED, batch)] * 3 + [(NCHW, batch)]  # the last is far behind
    (file,) = cache.iterdir()
    kept = json.loads(file.read_text())
    assert kept["form"] == str(PACKED) and kept["seconds"] == {str(DEFAULT): 1, str(PACKED): 0.8, str(NCHW): 1.2}
    assert kept["torch"] == torch.__version__ and kept["image"] == [1, 32, 32]
    slower = Clock({DEFAULT: 0.1, PACKED: 0.8, NCHW: 1.2})
    torch.set_num_threads(2)
    try:
        assert chosen(slower) == PACKED and slower.passes == []
    finally:
        torch.set_num_threads(1)


def test_a_few_percent_are_no_reason_to_leave_the_default(cache: Path) -> None:
    assert chosen(Clock({DEFAULT: 1.0, PACKED: 0.95, NCHW: 0.92})) == DEFAULT


def test_another_kind_of_network_is_measured_by_itself(cache: Path) -> None:
    assert chosen(Clock({DEFAULT: 1.0, PACKED: 0.8, NCHW: 1.2})) == PACKED
    clock = Clock({DEFAULT: 1.0, PACKED: 1.2, NCHW: 0.8})
    assert chosen(clock, weights=1001) == chosen(clock, side=33) == chosen(clock, precision="bf16") == NCHW
    assert len(list(cache.iterdir())) == 4


def test_a_small_network_is_not_measured(cache: Path) -> None:
    clock = Clock({DEFAULT: 1.0, PACKED: 0.8, NCHW: 1.2})
    assert chosen(clock, weights=900) == DEFAULT and clock.passes == [] and not cache.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"form": "another"}', '{"form": 3}', "\0", "\ud800"])
def test_a_damaged_file_is_made_again(cache: Path, text: str) -> None:
    clock = Clock({DEFAULT: 1.0, PACKED: 0.8, NCHW: 1.2})
    assert chosen(clock) == PACKED
    (file,) = cache.iterdir()
    whole = file.read_text()
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert chosen(clock) == PACKED and file.read_text() == whole


def test_what_another_process_has_chosen_meanwhile_counts(cache: Path) -> None:
    first, second = Clock({DEFAULT: 1.0, PACKED: 0.8, NCHW: 1.2}), Clock({DEFAULT: 1.0, PACKED: 1.2, NCHW: 0.8})
    make = first.make

    def made_while_the_other_is_quicker(form: Form) -> Classifier:
        assert chosen(second) == NCHW
        return make(form)

    first.make = made_while_the_other_is_quicker  # type: ignore[method-assign]
    assert chosen(first) == NCHW


@pytest.mark.parametrize("place", [os.devnull, "file"])
def test_where_the_choice_cannot_be_kept_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("COPROBE_CACHE", str(tmp_path / place))
    clock = Clock({DEFAULT: 1.0, PACKED: 0.8, NCHW: 1.2})
    assert chosen(clock) == DEFAULT and clock.passes == []


def test_forms_that_cannot_be_had_are_not_chosen(cache: Path) -> None:
    assert chosen(Clock({DEFAULT: 1.0, NCHW: 0.8})) == NCHW
    less = Clock({DEFAULT: 1.0, PACKED: 0.1, NCHW: 0.8}, {PACKED: NCHW, DEFAULT: PLAIN})
    assert chosen(less, side=33) == NCHW
    assert chosen(Clock({PACKED: 0.1, NCHW: 0.8}), side=34) == DEFAULT


class Large(nn.Module):
    """Worth measuring by the number of its weights, but quick."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.unused = sequential(*pair(3, 16), channels=16), nn.Conv2d(1000, 1000, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_the_fast_form_of_a_large_network_is_the_one_that_is_remembered(cache: Path) -> None:
    model, x = classifier(Large()), torch.rand(4, 3, 32, 32)
    random = torch.get_rng_state()
    first = fast(model, images=x, say=refuse)
    assert torch.equal(torch.get_rng_state(), random)
    (file,) = cache.iterdir()
    kept = json.loads(file.read_text())
    assert isinstance(first, FastClassifier) and kept["form"] == str(first.form)
    for form in (PLAIN, Form(packed=True)):
        file.write_text(json.dumps({**kept, "form": str(form)}))
        made = fast(model, images=x, nodes=["body.0"], say=refuse)
        assert isinstance(made, FastClassifier) and made.form == form
        assert_same(model, made, x, ["body.0"])
    made = fast(model, images=x, form=Form(), say=refuse)
    assert isinstance(made, FastClassifier) and made.form == Form()


class Second(Processes):
    """The second of two processes, of which the first has chosen."""

    def broadcast(self, value: Any) -> Any:
        return Form(packed=True)


def test_process_0_chooses_for_all(cache: Path) -> None:
    model, x = classifier(Large()), torch.rand(4, 3, 32, 32)
    made = fast(model, images=x, processes=Second(rank=1, world_size=2), say=refuse)
    assert isinstance(made, FastClassifier) and made.form == Form(packed=True)
    assert not cache.exists()
