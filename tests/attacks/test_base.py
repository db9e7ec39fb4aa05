from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from coprobe.attacks import ATTACKS, Attack, StepAttack, parse, project
from coprobe.attacks.gradient import CW, FGSM, PGD
from coprobe.core.randomness import ImageRandomness
from coprobe.core.registry import Registry
from coprobe.errors import InputError, RunError
from tests.attacks.small import linear


@dataclass(frozen=True, kw_only=True)
class Escape(StepAttack):
    """An attack that does not stay in the ball."""

    name: ClassVar[str] = "escape"
    title: ClassVar[str] = "Escape"
    to: float = 9.0

    def run(self, model: nn.Module, x: Tensor, y: Tensor, randomness: ImageRandomness) -> Tensor:
        return x + self.to

    def iterate(self, model: nn.Module, x: Tensor, y: Tensor, randomness: ImageRandomness) -> Iterator[Tensor]:
        kept = x.clone()
        for _ in range(3):
            yield kept
            kept += self.to


@pytest.mark.parametrize(
    ("spec", "attack"),
    [
        ("fgsm", FGSM(epsilon=0.1)),
        ("fgsm:start=zero", FGSM(epsilon=0.1, start="zero")),
        ("fgsm:rule=always:start=zero", FGSM(epsilon=0.1, start="zero", rule="always")),
        ("pgd", PGD(epsilon=0.1)),
        ("pgd:10", PGD(epsilon=0.1)),
        ("pgd:50", PGD(epsilon=0.1, iterations=50)),
        ("pgd:iterations=50", PGD(epsilon=0.1, iterations=50)),
        ("pgd:restarts=10:50", PGD(epsilon=0.1, iterations=50, restarts=10)),
        ("pgd:50:restarts=10:step-size=4", PGD(epsilon=0.1, iterations=50, restarts=10, step_size=4 / 255)),
        ("pgd:step_size=0.25", PGD(epsilon=0.1, step_size=0.25 / 255)),
        ("pgd:step-size=255", PGD(epsilon=0.1, step_size=1)),
        ("cw", CW(epsilon=0.1)),
        ("cw:50:start=zero", CW(epsilon=0.1, iterations=50, start="zero")),
    ],
)
def test_spellings(spec: str, attack: Attack) -> None:
    assert parse(spec, 0.1) == attack
    assert type(parse(spec, 0.1)) is type(attack)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pdg:10", "unknown attack 'pdg'; did you mean pgd?"),
        ("apgd", "unknown attack 'apgd'; did you mean pgd or apgd-t or apgd-ce?"),
        ("", f"unknown attack ''; choose from {', '.join(ATTACKS)}"),
        ("pgd:steps=10", "attack 'pgd:steps=10': 'steps=10' is no option of pgd; it takes "),
        ("pgd:epsilon=1", "attack 'pgd:epsilon=1': 'epsilon=1' is no option of pgd; it takes "),
        ("pgd:=1", "attack 'pgd:=1': '=1' is no option of pgd; it takes "),
        ("fgsm:10", "attack 'fgsm:10': '10' is no option of fgsm; it takes start, rule"),
        ("aa:10", "attack 'aa:10': '10' is no option of aa; it takes fast, members"),
        ("pgd:ten", "attack 'pgd:ten': iterations takes a whole number, not 'ten'"),
        ("pgd:", "attack 'pgd:': iterations takes a whole number, not ''"),
        ("pgd:2.5", "attack 'pgd:2.5': iterations takes a whole number, not '2.5'"),
        ("pgd:step-size=big", "attack 'pgd:step-size=big': step-size takes a number, not 'big'"),
        ("pgd:10:20", "attack 'pgd:10:20': iterations is given twice; keep one"),
        ("pgd:step-size=1:step_size=2", "attack 'pgd:step-size=1:step_size=2': step_size is given twice; keep one"),
        ("pgd:0", "pgd: iterations 0: must be at least 1"),
        ("pgd:-3", "pgd: iterations -3: must be at least 1"),
        ("cw:restarts=0", "cw: restarts 0: must be at least 1"),
        ("pgd:step-size=0", "pgd: step-size 0/255: must be above 0 and at most 255/255"),
        ("pgd:step-size=-2", "pgd: step-size -2/255: must be above 0 and at most 255/255"),
        ("pgd:step-size=256", "pgd: step-size 256/255: must be above 0 and at most 255/255"),
        ("pgd:step-size=nan", "pgd: step-size nan/255: must be above 0 and at most 255/255"),
        ("pgd:step-size=inf", "pgd: step-size inf/255: must be above 0 and at most 255/255"),
        ("pgd:start=ball", "pgd: start 'ball' is not one of uniform, zero"),
        ("fgsm:rule=never", "fgsm: rule 'never' is not one of until-misclassified, always"),
    ],
)
@pytest.mark.parametrize("epsilon", [0.1, 0.0])
def test_errors(spec: str, message: str, epsilon: float) -> None:
    with pytest.raises(InputError) as error:
        parse(spec, epsilon)
    shown = str(error.value)
    assert shown == message or (message.endswith("takes ") and shown.startswith(message))
    assert "\n" not in shown


def test_error_names_every_option() -> None:
    with pytest.raises(InputError) as error:
        parse("pgd:steps=1", 0.1)
    assert str(error.value).endswith("it takes start, rule, iterations, step-size, restarts, target")


@pytest.mark.parametrize("spec", list(ATTACKS))
@pytest.mark.parametrize(
    ("epsilon", "shown"), [(-1 / 255, "-1"), (256 / 255, "256"), (8, "2040"), (float("nan"), "nan"), (1e9, "2.55e+11")]
)
def test_epsilon_out_of_range(spec: str, epsilon: float, shown: str) -> None:
    with pytest.raises(InputError) as error:
        parse(spec, epsilon)
    assert str(error.value) == f"epsilon {shown}/255: must lie between 0 and 255 (in 255ths)"


@pytest.mark.parametrize(
    ("given", "spec", "label"),
    [
        ("fgsm", "fgsm", "FGSM"),
        ("fgsm:start=zero", "fgsm:start=zero", "FGSM (start=zero)"),
        ("pgd", "pgd:10", "PGD-10"),
        ("pgd:step-size=2:start=uniform:50", "pgd:50", "PGD-50"),
        ("pgd:restarts=10:50", "pgd:50:restarts=10", "PGD-50 (restarts=10)"),
        ("pgd:start=zero:step-size=0.25", "pgd:10:start=zero:step-size=0.25", "PGD-10 (start=zero, step-size=0.25)"),
        ("cw", "cw:20", "C&W"),
        ("cw:50", "cw:50", "C&W-50"),
        ("cw:step-size=4", "cw:20:step-size=4", "C&W (step-size=4)"),
        ("aa", "aa", "AA"),
        ("apgd-t", "apgd-t", "APGD-T"),
    ],
)
def test_spec_and_label(given: str, spec: str, label: str) -> None:
    attack = parse(given, 0.1)
    assert (attack.spec, attack.label) == (spec, label)
    assert parse(attack.spec, 0.1) == attack


@settings(deadline=None, derandomize=True)
@given(
    make=st.sampled_from([PGD, CW]),
    iterations=st.integers(1, 1000),
    restarts=st.integers(1, 20),
    step=st.floats(0.001, 255).map(lambda n: float(f"{n:.9g}")),
    start=st.sampled_from(["uniform", "zero"]),
    rule=st.sampled_from(["until-misclassified", "always"]),
)
def test_spec_makes_the_same_attack(
    make: type[PGD], iterations: int, restarts: int, step: float, start: str, rule: str
) -> None:
    attack = make(epsilon=0.1, iterations=iterations, restarts=restarts, step_size=step / 255, start=start, rule=rule)
    assert parse(attack.spec, 0.1) == attack


def test_options_are_read_by_type_however_the_annotation_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module without `from __future__ import annotations` has types, not their names, in its fields."""

    def run(self: Attack, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        return x

    members: dict[str, Any] = {
        "__annotations__": {"word": str, "count": int, "share": float, "loud": bool, "iterations": int},
        "word": "a",
        "count": 1,
        "share": 2,
        "loud": True,
        "iterations": 7,
        "name": "plain",
        "title": "Plain",
        "run": run,
        "__module__": __name__,
    }
    plain = dataclass(frozen=True, kw_only=True)(type("Plain", (Attack,), members))
    monkeypatch.setattr("coprobe.attacks.base.ATTACKS", registry := Registry[type[Attack]]("attack"))
    registry.add("plain", plain, summary="does nothing")
    attack = parse("plain:word=3:count=4:share=0.5:loud=False", 0.1)
    assert [attack.word, attack.count, attack.share, attack.loud] == ["3", 4, 0.5, False]  # type: ignore[attr-defined]
    assert attack.label == "Plain-7 (word=3, count=4, share=0.5, loud=False)"
    with pytest.raises(InputError, match="loud takes true or false, not 'yes'"):
        parse("plain:loud=yes", 0.1)


def test_subclass_cannot_leave_the_ball() -> None:
    x = torch.rand(2, 1, 3, 4)
    attack, model, y = Escape(epsilon=0.1), linear((1, 3, 4), 2), torch.zeros(2).long()
    expected = (x + 0.1).clamp(0, 1)
    assert torch.equal(attack(model, x, y), expected)
    assert [torch.equal(x_t, e) for x_t, e in zip(attack.steps(model, x, y), [x, expected, expected], strict=True)]


def test_steps_are_copies() -> None:
    """What the caller does to one iterate changes no other."""
    x, y = torch.rand(2, 1, 3, 4), torch.tensor([0, 1])
    model, attack = linear((1, 3, 4), 2), PGD(epsilon=0.1, rule="always")
    expected = list(attack.steps(model, x, y))
    for x_t, e in zip(attack.steps(model, x, y), expected, strict=True):
        assert torch.equal(x_t, e)
        x_t.zero_()


def test_images_that_are_not_finite_are_an_error() -> None:
    x, y = torch.rand(2, 1, 3, 4), torch.zeros(2).long()
    with pytest.raises(RunError, match=r"Escape \(to=nan\): the model's logits or gradients are not finite"):
        Escape(epsilon=0.1, to=float("nan"))(linear((1, 3, 4), 2), x, y)


class RootAtZero(nn.Module):
    """Logits that are finite where their gradient is not: ∞ · 0."""

    def forward(self, x: Tensor) -> Tensor:
        score = (x - x).sqrt().flatten(1).sum(1)
        return torch.stack([score, 1 - score], 1)


@pytest.mark.parametrize("spec", ["fgsm", "pgd:3", "pgd:3:rule=always", "pgd:3:restarts=2", "cw:3"])
def test_gradient_that_is_nan_is_an_error_and_no_robustness(spec: str) -> None:
    x, y = torch.rand(2, 1, 3, 4), torch.ones(2).long()
    assert RootAtZero()(x).isfinite().all()
    with pytest.raises(RunError, match="the model's logits or gradients are not finite"):
        parse(spec, 0.1)(RootAtZero(), x, y)


@settings(deadline=None, derandomize=True)
@given(point=st.lists(st.floats(-3, 3), min_size=1, max_size=5), centre=st.floats(0, 1), epsilon=st.floats(0, 1))
def test_project_is_the_nearest_point(point: list[float], centre: float, epsilon: float) -> None:
    given = torch.tensor(point, dtype=torch.float64)
    projected = project(given, torch.full_like(given, centre), epsilon)
    low, high = max(0.0, centre - epsilon), min(1.0, centre + epsilon)
    assert projected.tolist() == [min(max(p, low), high) for p in point]


def test_the_seed_is_zero_and_images_are_numbered_from_zero_unless_said_otherwise() -> None:
    x, y, model = torch.rand(2, 1, 3, 4), torch.zeros(2).long(), linear((1, 3, 4), 2)
    attack = parse("pgd:2", 0.1)
    expected = attack(model, x, y, seed=0, indices=torch.arange(2))
    assert torch.equal(attack(model, x, y), expected)
    assert not torch.equal(attack(model, x, y, seed=1), expected)
    assert not torch.equal(attack(model, x, y, indices=torch.arange(1, 3)), expected)
    assert torch.equal(list(attack.steps(model, x, y))[-1], expected)  # type: ignore[attr-defined]
