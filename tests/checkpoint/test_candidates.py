"""Where networks are found in payloads of any shape, and that looking for them ends."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from coprobe.checkpoint.candidates import find_candidates
from coprobe.checkpoint.reader import OpaqueObject, Storage, TensorSpec
from coprobe.errors import InputError


def stored(*shape: int) -> TensorSpec:
    return TensorSpec(torch.float32, torch.Size(shape), (1,) * len(shape), 0, Storage("0", torch.float32, 0, 4))


def module(parameters: dict[str, Any], modules: dict[str, Any] | None = None, **attributes: Any) -> OpaqueObject:
    state = {"_parameters": parameters, "_buffers": {}, "_modules": modules or {}, **attributes}
    return OpaqueObject("some.Net", state=state)


def labels(payload: Any) -> list[str]:
    return [candidate.label for candidate in find_candidates(payload)]


def test_state_dicts_are_found_wherever_they_are() -> None:
    weights = {"w": stored(2)}
    assert labels(weights) == ["top"]
    assert labels({"epoch": 1, "net": weights, "list": [1, weights.copy()]}) == ["net", "list.1"]
    assert labels(OpaqueObject("some.TrainState", state={"params": weights})) == ["params"]
    assert labels(OpaqueObject("collections.Sorted", items=weights)) == ["top"]
    assert labels(OpaqueObject("some.Pair", args=(weights, 3))) == ["0"]


@pytest.mark.parametrize("key", ["optimal_model", "sample_model", "ampere", "schedules_done", "strange", "scaled_net"])
def test_a_key_that_contains_the_name_of_something_else_is_a_network(key: str) -> None:
    assert labels({key: {"w": stored(2)}}) == [key]


@pytest.mark.parametrize(
    "key", ["optim", "optimizer", "optimizer_G", "adam-optimizer1", "lr_scheduler", "amp", "amp_scaler", "rng_state"]
)
def test_a_key_of_training_code_is_none(key: str) -> None:
    assert labels({key: {"w": stored(2)}}) == []


def test_the_state_of_an_optimizer_is_none_whatever_it_is_called() -> None:
    assert labels({"adam": {"state": {"w": {"exp_avg": stored(9)}}, "param_groups": [{"lr": 0.1}]}}) == []


def test_parts_of_a_state_dict() -> None:
    def named(*prefixes: str) -> dict[str, TensorSpec]:
        return {f"{prefix}{name}": stored(2) for prefix in prefixes for name in "abcd"}

    (both,) = find_candidates({"model": {**named("module.student.", "module.teacher."), "module.loss.a": stored(1)}})
    parts = both.parts()
    assert [part.label for part in parts] == ["model.module.student", "model.module.teacher"]
    assert [list(part.weights) for part in parts] == [list("abcd")] * 2
    assert [part.tier for part in parts] == [1, 2]
    (one,) = find_candidates(named("", "head."))
    assert [part.label for part in one.parts()] == ["head"]
    assert one.part("nothing") is None
    (alone,) = find_candidates({"a.b.weight": stored(2)})
    assert alone.parts() == []


def test_what_is_no_network_is_not_found() -> None:
    assert labels({"optimizer": {"state": {"0": {"exp_avg": stored(9)}}}, "scheduler": {"w": stored(1)}}) == []
    assert labels({"mean": stored(3), "std": stored(3)}) == []
    for payload in (None, 3, "text", b"", [], {}, (), {1: stored(2)}):
        assert labels(payload) == []


def test_a_module_becomes_its_state_dict_in_torchs_order() -> None:
    buffers = {"hidden": stored(1), "mean": stored(1), "seen": stored()}
    inner = module(
        {"weight": stored(2), "bias": None}, _buffers=buffers, _non_persistent_buffers_set={"hidden", "mean"}
    )
    payload = module({"scale": stored(1)}, {"b": inner, "a": inner, "none": None}, std=[0.5])
    (found,) = find_candidates(payload)
    assert list(found.weights) == ["scale", "b.weight", "b.seen", "a.weight", "a.seen"]
    assert set(found.numbers) == {"std", "a.mean", "b.mean"}
    assert found.layout == "module 'some.Net' pickled whole"


def test_tiers() -> None:
    weights = {"w": stored(2)}
    payload = {key: weights.copy() for key in ("state_dict", "best", "ema", "model_ema", "averaged_model")}
    assert [candidate.tier for candidate in find_candidates(payload)] == [0, 1, 2, 2, 2]


def cyclic() -> Any:
    payload: dict[str, Any] = {"net": {"w": stored(1)}}
    payload["self"] = payload["list"] = [payload]
    return payload


def deep() -> Any:
    payload: Any = {"w": stored(1)}
    for _ in range(100_000):
        payload = {"a": payload}
    return payload


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (cyclic, ["net"]),
        (deep, []),
        (lambda: {str(number): [number] for number in range(60_000)}, []),
    ],
    ids=["cyclic", "deep", "wide"],
)
def test_looking_ends(payload: Any, expected: list[str]) -> None:
    made = payload()
    started = time.process_time()
    assert labels(made) == expected
    assert time.process_time() - started < 5


def test_a_module_inside_itself_is_refused() -> None:
    inner = module({"w": stored(1)})
    inner.state["_modules"]["again"] = inner
    with pytest.raises(InputError, match="too many or too deep submodules"):
        find_candidates(inner)
    doubled = module({"w": stored(1)})
    for _ in range(40):
        doubled = module({}, {"a": doubled, "b": doubled})
    with pytest.raises(InputError, match="too many or too deep submodules"):
        find_candidates(doubled)
