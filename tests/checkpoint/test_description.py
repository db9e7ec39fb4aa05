"""Training facts of other people's files: few, plain and short, whatever stands there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from coprobe.checkpoint.description import read_training_facts
from coprobe.checkpoint.reader import OpaqueObject, Storage, TensorSpec

NUMBER = TensorSpec(torch.float32, torch.Size([]), (), 0, Storage("0", torch.float32, 0, 4))


def facts(payload: Any, **metadata: str) -> dict[str, Any]:
    return read_training_facts(payload, metadata, lambda stored: [0.5])


def test_values_at_the_top_come_first_then_the_arguments_then_the_optimizer() -> None:
    payload = {
        "epoch": 3,
        "acc": NUMBER,
        "args": OpaqueObject("argparse.Namespace", state={"lr": 0.1, "epoch": 99, "layers": [1]}),
        "hyper_parameters": OpaqueObject("some.AttributeDict", items={"eps": 8}),
        "optimizer": {"param_groups": [{"lr": 0.2, "params": [0]}]},
        "layer.weight": NUMBER,
    }
    expected = {"epoch": 3, "acc": 0.5, "lr": 0.1, "eps": 8, "optimizer lr": 0.2}
    assert facts(payload) == expected
    assert list(facts(payload)) == list(expected)
    assert facts({}, format="pt", author="me") == {"author": "me"}


def test_they_are_few_and_short() -> None:
    many = facts({f"fact {number}": "x" * 1000 for number in range(100)} | {"y" * 1000: 1})
    assert len(many) == 20 and {len(value) for value in many.values()} == {60}
    (value,) = facts({"n": 10**10_000}).values()
    assert len(value) == 60 and value.startswith("0x")
    assert [*facts({"y" * 1000: 1})] == ["y" * 60]


@pytest.mark.parametrize(
    "payload",
    [
        None,
        [1],
        NUMBER,
        {1: 2},
        {"args": [3], "optimizer": [None]},
        {"optimizer": {"param_groups": [[]]}},
        {"optimizer": {"param_groups": 3}},
        OpaqueObject("some.Net", state={"_modules": {}, "_parameters": {}, "training": True}),
    ],
)
def test_nothing_to_tell(payload: Any) -> None:
    assert facts(payload) == {}
