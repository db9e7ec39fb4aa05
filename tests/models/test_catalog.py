from __future__ import annotations

import re

import pytest
import torch

from coprobe.errors import InputError
from coprobe.models import ARCHITECTURES, build, infer, mismatches


def weights(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """A narrow ResNet-18's weights; a value of None removes one, dots are written `__`."""
    state_dict = dict(build("resnet18", width=4).state_dict())
    for key, weight in changes.items():
        name = key.replace("__", ".")
        if weight is None:
            del state_dict[name]
        else:
            state_dict[name] = weight
    return state_dict


def test_the_promised_architectures_are_there() -> None:
    promised = "resnet18 resnet34 resnet50 preact-resnet18 wrn-34-10 wrn-28-10 vgg11 vgg16 vgg19"
    assert set(promised.split()) <= set(ARCHITECTURES)


def test_unknown_architecture_offers_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown architecture 'resnet19'; did you mean resnet18"):
        build("resnet19")


@pytest.mark.parametrize(
    ("arch_args", "complaint"),
    [
        ({"width": 0}, "width=0 is not a positive int"),
        ({"num_classes": "x"}, "num_classes='x' is not a positive int"),
        ({"in_channels": True}, "in_channels=True is not a positive int"),
        ({"width": 8.0}, "width=8.0 is not a positive int"),
        ({"wdith": 8}, "resnet18 has no argument 'wdith'"),
        ({"block": None}, "resnet18 has no argument 'block'"),
    ],
)
def test_wrong_arguments_name_the_allowed_ones(arch_args: dict[str, object], complaint: str) -> None:
    with pytest.raises(InputError, match=re.escape(complaint)) as caught:
        build("resnet18", **arch_args)
    assert "width=64, num_classes=10, in_channels=3" in str(caught.value)


def test_mismatches_of_equal_weights_are_none() -> None:
    assert mismatches(build("resnet18", width=4), weights()) == []


def test_mismatches_tell_missing_unexpected_and_misshapen_apart() -> None:
    changed = weights(conv1__weight=None, extra__bias=torch.zeros(2, 5), linear__bias=torch.zeros(3))
    assert mismatches(build("resnet18", width=4), changed) == [
        "missing conv1.weight (4×3×3×3)",
        "unexpected extra.bias (2×5)",
        "linear.bias is 3 instead of 10",
    ]


def test_infer_forgives_missing_counters_only() -> None:
    state_dict = {name: w for name, w in weights().items() if not name.endswith("num_batches_tracked")}
    assert infer(state_dict) == ("resnet18", {"width": 4, "num_classes": 10, "in_channels": 3})
    with pytest.raises(InputError, match=r"unexpected stray\.num_batches_tracked"):
        infer({**state_dict, "stray.num_batches_tracked": torch.tensor(0)})


def test_infer_names_the_nearest_and_up_to_five_differences() -> None:
    strays = {f"stray{i}": torch.zeros(1) for i in range(7)}
    with pytest.raises(InputError) as caught:
        infer(weights(**strays))
    message = str(caught.value)
    assert "nearest is resnet18, where 7 names or shapes differ" in message
    assert message.count("unexpected stray") == 5
    assert "tried " in message
    assert "resnet34" in message
    assert message.endswith("pass --arch NAME")


@pytest.mark.parametrize(
    "state_dict",
    [{}, {"encoder.weight": torch.zeros(3)}, {"conv1.weight": torch.zeros(3), "linear.weight": torch.zeros(3)}],
    ids=["empty", "foreign", "flat"],
)
def test_infer_of_something_else_lists_what_it_tried(state_dict: dict[str, torch.Tensor]) -> None:
    with pytest.raises(InputError, match=r"tried .*resnet18.*pass --arch NAME$"):
        infer(state_dict)
