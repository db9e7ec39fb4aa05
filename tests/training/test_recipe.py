from __future__ import annotations

import json

import pytest

from coprobe.errors import InputError
from coprobe.training import Recipe


def test_round_trip_through_json() -> None:
    recipe = Recipe(method="fgsm-mep", options={"label_factor": 0.5}, eps_train=12, stable_node="B", stable_weight=200)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown key of a recipe 'epoch'; did you mean epochs"):
        Recipe.from_dict({"epoch": 3})


def test_one_cycle_rises_to_the_peak_at_40_percent_and_falls_to_zero() -> None:
    recipe = Recipe(lr=0.2, schedule="one-cycle")
    assert recipe.learning_rate(0) == 0
    assert recipe.learning_rate(0.2) == pytest.approx(0.1)
    assert recipe.learning_rate(0.4) == pytest.approx(0.2)
    assert recipe.learning_rate(0.7) == pytest.approx(0.1)


def test_step_schedule_falls_at_epochs_100_and_105_of_110() -> None:
    recipe = Recipe(lr=0.1, schedule="step", epochs=110)
    assert [round(recipe.learning_rate(epoch / 110), 6) for epoch in (0, 99, 100, 104, 105, 109)] == [
        0.1,
        0.1,
        0.01,
        0.01,
        0.001,
        0.001,
    ]


def test_a_run_stops_at_the_collapse_only_when_asked() -> None:
    assert not Recipe().stops_after(fgsm=0.9, pgd10=0.0)
    recipe = Recipe(stop_at_collapse=True)
    assert recipe.stops_after(fgsm=0.43, pgd10=0.02)
    assert not recipe.stops_after(fgsm=0.9, pgd10=0.03)
    assert not recipe.stops_after(fgsm=0.39, pgd10=0.0)


def test_constant_schedule() -> None:
    assert Recipe(lr=0.05, schedule="constant").learning_rate(0.99) == 0.05


def test_evaluation_radius() -> None:
    assert Recipe(eps_train=12).evaluation_epsilon == pytest.approx(12 / 255)
    assert Recipe(eps_train=12, eps_eval=16).evaluation_epsilon == pytest.approx(16 / 255)
    assert Recipe(method="clean").evaluation_epsilon == pytest.approx(8 / 255)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"eps_train": -1}, "--eps-train -1: must lie between 0 and 255"),
        ({"eps_train": 256}, "--eps-train 256: must lie between 0 and 255"),
        ({"eps_train": float("nan")}, "--eps-train nan: must lie between 0 and 255"),
        ({"epochs": 0}, "--epochs 0: must be at least 1"),
        ({"batch_size": 0}, "--batch-size 0: must be at least 1"),
        ({"lr": float("inf")}, "--lr inf: must be a finite number"),
        ({"schedule": "onecycle"}, "unknown schedule 'onecycle'; did you mean one-cycle"),
        ({"augment": "flip"}, "unknown augment 'flip'"),
        ({"stable_weight": 20.0}, "--stable-weight needs --stable-node"),
        ({"stable_node": "B"}, "--stable-node needs --stable-weight"),
    ],
)
def test_impossible_knobs_are_refused(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as raised:
        Recipe(**knobs)  # type: ignore[arg-type]
    assert str(raised.value).startswith(message)
