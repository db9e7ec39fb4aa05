from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from coprobe.errors import InputError
from coprobe.training import PRESETS, Recipe
from coprobe.training.recipe import flag

KNOBS = dataclasses.fields(Recipe)
#: Knobs that a knob needs beside it.
NEEDS: dict[str, dict[str, Any]] = {
    "stable_node": {"stable_weight": 1.0},
    "stable_weight": {"stable_node": "B"},
    "co_node": {"co_top": 10.0},
    "co_top": {"co_node": "B"},
}


def refusal(**knobs: Any) -> str:
    with pytest.raises(InputError) as raised:
        Recipe(**knobs)
    return str(raised.value)


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
    rates = [recipe.learning_rate(epoch / 110) for epoch in (0, 99, 100, 104, 105, 109)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


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
        ({"eps_train": math.nan}, "--eps-train nan: must lie between 0 and 255"),
        ({"epochs": 0}, "--epochs 0: must be at least 1"),
        ({"batch_size": 0}, "--batch-size 0: must be at least 1"),
        ({"lr": math.inf}, "--lr inf: must be a finite number"),
        ({"momentum": 1.0}, "--momentum 1: must be a finite number, at least 0 and below 1"),
        ({"peak": 0.0}, "--peak 0: must be a finite number, above 0 and below 1"),
        ({"schedule": "onecycle"}, "unknown schedule 'onecycle'; did you mean one-cycle"),
        ({"augment": "flip"}, "unknown augment 'flip'"),
        ({"co_node": "B", "co_top": 0.0}, "--co-top 0: must be a finite number, above 0 and at most 100"),
        ({"co_node": "B", "co_top": 101.0}, "--co-top 101: must be"),
        # knobs that need each other
        ({"stable_weight": 20.0}, "--stable-weight needs --stable-node (B in the paper)"),
        ({"stable_node": "B"}, "--stable-node needs --stable-weight (200 in the paper)"),
        ({"stable_detach": True}, "--stable-detach needs --stable-node and --stable-weight"),
        ({"co_node": "B"}, "--co-node needs --co-top (10 in the paper)"),
        ({"co_top": 10.0}, "--co-top needs --co-node (B in the paper)"),
        ({"co_weight": 20.0}, "--co-weight needs --co-node (B in the paper)"),
        ({"co_by": "variance"}, "--co-by needs --co-node (B in the paper)"),
        ({"co_select": "once"}, "--co-select needs --co-node (B in the paper)"),
        ({"co_images": 100}, "--co-images needs --co-node (B in the paper)"),
        ({"milestones": (3, 5)}, "--milestones needs --schedule step"),
        ({"milestones": (5, 3), "schedule": "step"}, "--milestones must rise and lie between 1 and 29, the last epoch"),
        ({"milestones": (3, 3), "schedule": "step"}, "--milestones must rise"),
        ({"milestones": (0, 3), "schedule": "step"}, "--milestones must rise"),
        ({"milestones": (3, 30), "schedule": "step"}, "--milestones must rise"),
        ({"milestones": [["3"]], "schedule": "step"}, "--milestones must rise"),
        # kinds that JSON can mistake
        ({"epochs": "30"}, "--epochs '30': must be a whole number"),
        ({"epochs": 2.5}, "--epochs 2.5: must be a whole number"),
        ({"epochs": None}, "--epochs None: must be a whole number"),
        ({"seed": True}, "--seed True: must be a whole number"),
        ({"lr": "0.1"}, "--lr '0.1': must be a number"),
        ({"lr": True}, "--lr True: must be a number"),
        ({"data": 10}, "--data 10: must be text"),
        ({"schedule": ["step"]}, "--schedule ['step']: must be text"),
        ({"early_stop": "no"}, "--early-stop 'no': must be true or false"),
        ({"options": ["label_factor"]}, "--option ['label_factor']: must be options by name"),
        ({"milestones": "12", "schedule": "step"}, "--milestones '12': must be a list of epochs"),
    ],
    ids=str,
)
def test_impossible_knobs_are_refused(knobs: dict[str, Any], message: str) -> None:
    assert refusal(**knobs).startswith(message)


@pytest.mark.parametrize("knob", [k.name for k in KNOBS if str(k.type).startswith("float")])
def test_no_number_may_be_nan(knob: str) -> None:
    assert refusal(**NEEDS.get(knob, {}), **{knob: math.nan}).startswith(f"{flag(knob)} nan: must ")


@pytest.mark.parametrize("knob", [k for k in KNOBS if "choices" in k.metadata], ids=lambda k: k.name)
def test_only_the_choices_can_be_chosen(knob: dataclasses.Field[Any]) -> None:
    with_node = NEEDS["co_top"] | NEEDS["co_node"] if knob.name.startswith("co_") else {}
    for choice in knob.metadata["choices"]:
        assert getattr(Recipe(**with_node, **{knob.name: choice}), knob.name) == choice
    assert refusal(**with_node, **{knob.name: "?"}).startswith(f"unknown {flag(knob.name)[2:]} '?'; choose from ")


def test_every_limit_can_be_reached() -> None:
    for knob in KNOBS:
        for limit in {"least", "most"} & set(knob.metadata):
            value = knob.metadata[limit]
            recipe = Recipe(**{"co_node": "B", "co_top": 10.0, knob.name: value})
            assert getattr(recipe, knob.name) == value


def test_milestones_are_a_list_in_json() -> None:
    recipe = Recipe(schedule="step", lr=0.1, epochs=10, milestones=(2, 7))
    read = Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))
    assert read == recipe
    assert read.milestones == (2, 7)
    assert [recipe.learning_rate(epoch / 10) for epoch in (0, 1, 2, 6, 7, 9)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )


@pytest.mark.parametrize(
    ("knobs", "phases"),
    [
        ({"schedule": "one-cycle", "epochs": 10}, ((0, 10),)),
        ({"schedule": "constant", "epochs": 10}, ((0, 10),)),
        ({"schedule": "step", "epochs": 110}, ((0, 100), (100, 105), (105, 110))),
        ({"schedule": "step", "epochs": 10, "milestones": (2, 7)}, ((0, 2), (2, 7), (7, 10))),
        ({"schedule": "step", "epochs": 10, "milestones": ()}, ((0, 10),)),
    ],
)
def test_phases_are_the_stretches_between_milestones(
    knobs: dict[str, Any], phases: tuple[tuple[int, int], ...]
) -> None:
    recipe = Recipe(**knobs)
    assert recipe.phases == phases
    if recipe.schedule == "step":
        rates = [{recipe.learning_rate(epoch / recipe.epochs) for epoch in range(*phase)} for phase in phases]
        assert all(len(rate) == 1 for rate in rates)
        assert len(set.union(*rates)) == len(phases)


def test_the_peak_of_one_cycle_can_be_moved() -> None:
    recipe = Recipe(lr=0.3, schedule="one-cycle", peak=0.75)
    assert [recipe.learning_rate(at) for at in (0.25, 0.75, 0.875)] == pytest.approx([0.1, 0.3, 0.15])


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_recipes(name: str) -> None:
    recipe = Recipe.from_dict(PRESETS[name])
    assert {key: recipe.to_dict()[key] for key in PRESETS[name]} == PRESETS[name]


def test_the_preset_of_the_paper() -> None:
    recipe = Recipe.from_dict(PRESETS["paper"])
    assert (recipe.epochs, recipe.batch_size, recipe.momentum, recipe.weight_decay) == (110, 128, 0.9, 5e-4)
    rates = [recipe.learning_rate(update / 1100) for update in (0, 999, 1000, 1049, 1050, 1099)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_the_fast_preset() -> None:
    recipe = Recipe.from_dict(PRESETS["fast"])
    assert (recipe.epochs, recipe.schedule) == (30, "one-cycle")


def test_differences_are_said_as_options() -> None:
    recipe = Recipe(lr=0.2, early_stop=True, options={"k": 1})
    assert recipe.differences(recipe) == []
    assert recipe.differences(Recipe(lr=0.1, seed=3)) == [
        "--option {'k': 1} (not {})",
        "--lr 0.2 (not 0.1)",
        "--early-stop True (not False)",
        "--seed 0 (not 3)",
    ]


@pytest.mark.parametrize(
    ("total", "trained", "held_out"),
    [
        (50_000, None, 1000),
        (50_000, 25_000, 1000),
        (50_000, 3_000, 300),
        (50_000, 400, 50),
        (1_437, None, 143),
        (1_437, 1_400, 37),  # what is left over
        (60, None, 30),
        (3, None, 2),
        (400, 400, 1),  # which says itself that there are too few
    ],
)
def test_so_many_images_are_held_out_that_watching_takes_no_longer_than_training(
    total: int, trained: int | None, held_out: int
) -> None:
    assert Recipe(limit_train=trained).images_held_out(total) == held_out
    assert Recipe(limit_train=trained, held_out=7).images_held_out(total) == 7
