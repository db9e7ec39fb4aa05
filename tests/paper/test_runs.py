"""The 66 runs, and what each scale makes of them."""

from __future__ import annotations

import pytest

from coprobe.attacks import parse
from coprobe.errors import InputError
from coprobe.paper.needs import COLUMNS
from coprobe.paper.runs import RUNS, SCALES, scale_of
from coprobe.training.recipe import PRESETS, Recipe

BOTH = {"cifar10": "cifar10", "cifar100": "cifar100"}


def recipe(name: str, scale: str, seed: int = 0) -> Recipe:
    return RUNS[name].recipe(SCALES[scale], {**BOTH, **SCALES[scale].data}, seed)


def test_there_are_66_runs_each_under_its_own_name() -> None:
    assert len(RUNS) == 66 and all(name == run.name for name, run in RUNS.items())
    assert {name for name, run in RUNS.items() if run.data == "cifar100"} == {
        name for name in RUNS if name.endswith("-c100")
    }
    assert {name for name, run in RUNS.items() if run.watched} == {
        "mep-12", "mep-8", "co-1-8", "co-3-8", "co-10-8", "co-20-8", "co-var10-8",
    }  # fmt: skip


def test_figures_1_and_3_come_first_and_the_second_data_set_last() -> None:
    names = list(RUNS)
    assert names[:4] == ["mep-12", "fd-b200-12", "origin", "mep-eq10-12"]
    assert set(names[4:9]) == {"mep-8", "co-10-8", "co-1-8", "co-3-8", "co-20-8"}
    assert all(name.endswith("-c100") for name in names[-8:])


def test_no_two_runs_are_the_same_training() -> None:
    for scale in SCALES.values():
        recipes = [str(run.recipe(scale, scale.data).to_dict()) for run in RUNS.values() if run.data in scale.data]
        assert len(set(recipes)) == len(recipes) == (66 if scale.name == "paper" else 57)


def test_paper_scale_has_the_papers_numbers() -> None:
    made = recipe("fd-b200-12", "paper")
    assert (made.method, made.eps_train, made.stable_node, made.stable_weight) == ("fgsm-mep", 12.0, "B", 200.0)
    assert (made.logit_weight, made.width, made.limit_train) == (0.0, None, None)
    assert (made.epochs, made.schedule, made.precision) == (PRESETS["paper"]["epochs"], "step", "bf16")
    assert recipe("co-10-8", "paper").co_weight == 200.0 and recipe("co-10-8", "paper").co_images == 2000
    assert recipe("mep-eq10-12", "paper").logit_weight == 10.0


@pytest.mark.parametrize(("name", "baseline"), [("demo", "fgsm"), ("small", "fgsm-rs")])
def test_smaller_scales_stretch_budgets_and_weights(name: str, baseline: str) -> None:
    scale = SCALES[name]
    assert scale.baseline == baseline and scale.weights < 1 and scale.co_weights < 1
    stable, inducing = recipe("fd-b200-12", name), recipe("co-10-8", name)
    assert (stable.method, stable.eps_train, stable.eps_also) == (baseline, 12 * scale.stretch, 0)
    assert stable.stable_weight == 200 * scale.weights and stable.data == scale.data["cifar10"]
    assert inducing.co_weight == 200 * scale.co_weights and inducing.co_images == scale.co_images
    assert (inducing.eps_train, inducing.eps_also) == (8 * scale.stretch, 16 * scale.stretch)
    assert {knob: getattr(inducing, knob) for knob in scale.knobs} == scale.knobs


def test_a_run_without_attack_has_no_budget() -> None:
    assert RUNS["origin"].xi is None and RUNS["mep-12"].xi == 12
    assert recipe("origin", "demo").eps_train == recipe("origin", "paper").eps_train


def test_options_of_fgsm_mep_are_dropped_for_another_baseline() -> None:
    assert RUNS["fd-b200-12-c100"].knobs["options"] == {"reset_every": 10}
    assert recipe("fd-b200-12-c100", "paper").options == {"reset_every": 10}
    assert recipe("fd-b200-12-c100", "small").options == {}


def test_only_paper_scale_keeps_schedules_of_their_own() -> None:
    assert (recipe("atas-10", "paper").epochs, recipe("zerograd-10", "paper").schedule) == (30, "one-cycle")
    assert recipe("atas-10", "demo").epochs == recipe("mep-12", "demo").epochs
    assert recipe("zerograd-10", "demo").schedule == "constant"


def test_seeds_differ_in_the_seed_alone() -> None:
    assert recipe("mep-12", "demo", 2).differences(recipe("mep-12", "demo")) == ["--seed 2 (not 0)"]


def test_the_attacks_of_every_scale_can_be_read_and_stay_apart() -> None:
    for scale in SCALES.values():
        assert set(scale.attacks) <= set(COLUMNS)
        specs = [parse(spec, 8 / 255).spec for spec in scale.attacks.values()]
        assert specs == list(scale.attacks.values())  # masking finds its columns by them
        assert len(set(specs)) == len(specs)
    assert set(SCALES["paper"].attacks) == set(COLUMNS)


def test_an_unknown_scale_is_refused() -> None:
    assert scale_of("demo") is SCALES["demo"]
    with pytest.raises(InputError, match="unknown scale 'papr'; did you mean paper"):
        scale_of("papr")
