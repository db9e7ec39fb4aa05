from __future__ import annotations

import re

import pytest
import torch

from coprobe.errors import InputError
from coprobe.models import ARCHITECTURES, build, mismatches, proposals
from tests.models.recognised import recognised


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
    assert list(map(str, mismatches(build("resnet18", width=4), changed))) == [
        "missing conv1.weight (4×3×3×3)",
        "unexpected extra.bias (2×5)",
        "linear.bias is 3 instead of 10",
    ]


def test_a_long_name_is_cut() -> None:
    (difference,) = mismatches(build("resnet18", width=4), weights(**{"x" * 500: torch.zeros(2)}))
    assert (difference.kind, difference.name, len(str(difference))) == ("unexpected", "x" * 500, 76)


def test_only_missing_counters_are_forgiven() -> None:
    state_dict = {name: w for name, w in weights().items() if not name.endswith("num_batches_tracked")}
    assert recognised(state_dict) == ("resnet18", {"width": 4, "num_classes": 10, "in_channels": 3})
    assert recognised({**state_dict, "stray.num_batches_tracked": torch.tensor(0)}) is None


def test_proposals_are_those_that_find_their_first_and_last_layer() -> None:
    assert [arch for arch, _, _ in proposals(weights())] == ["preact-resnet18", "resnet18", "resnet34", "resnet50"]
    assert all(weight.is_meta for _, _, network in proposals(weights()) for weight in network.parameters())


@pytest.mark.parametrize(
    "state_dict",
    [
        {},
        {"encoder.weight": torch.zeros(3)},
        {"conv1.weight": torch.zeros(3), "linear.weight": torch.zeros(3)},
        {"conv1.weight": torch.zeros(0, 3, 3, 3), "linear.weight": torch.zeros(10, 0)},
    ],
    ids=["empty", "foreign", "flat", "no channels"],
)
def test_something_else_has_no_proposals(state_dict: dict[str, torch.Tensor]) -> None:
    assert list(proposals(state_dict)) == []
