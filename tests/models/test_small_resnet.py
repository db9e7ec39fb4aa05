"""The thin ResNets of the CIFAR paper, beside a literal copy of what the public code computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from coprobe.errors import InputError
from coprobe.models import build
from tests.models.passed import passed
from tests.models.recognised import recognised

DEPTHS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}


def literal(weights: dict[str, Tensor], blocks: int, x: Tensor) -> Tensor:
    """The forward pass written out, from the weights alone; option A where a stage has no weights for its shortcut."""

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var, scale, shift = (weights[f"{name}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, scale, shift)

    x = F.relu(norm("bn1", F.conv2d(x, weights["conv1.weight"], padding=1)))
    for stage in (1, 2, 3):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            out = F.relu(norm(f"{name}.bn1", F.conv2d(x, weights[f"{name}.conv1.weight"], stride=stride, padding=1)))
            out = norm(f"{name}.bn2", F.conv2d(out, weights[f"{name}.conv2.weight"], padding=1))
            if f"{name}.shortcut.0.weight" in weights:
                x = norm(f"{name}.shortcut.1", F.conv2d(x, weights[f"{name}.shortcut.0.weight"], stride=2))
            elif stride == 2:
                planes = out.shape[1]
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, planes // 4, planes // 4), "constant", 0)
            x = F.relu(out + x)
    x = F.avg_pool2d(x, x.shape[3]).flatten(1)
    return F.linear(x, weights["linear.weight"], weights["linear.bias"])


@pytest.mark.parametrize(("depth", "count"), DEPTHS.items())
def test_parameter_count(depth: int, count: int) -> None:
    with torch.device("meta"):
        network = build(f"resnet{depth}")
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("shortcut", ["padded", "projected"])
@pytest.mark.parametrize("depth", [20, 32])
def test_it_computes_what_the_public_code_does(depth: int, shortcut: str) -> None:
    torch.manual_seed(0)
    network = build(f"resnet{depth}", width=4, shortcut=shortcut)
    network(torch.rand(8, 3, 16, 16))  # batch norm sees something
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), literal(network.state_dict(), (depth - 2) // 6, x))


@pytest.mark.parametrize("shortcut", ["padded", "projected"])
@pytest.mark.parametrize("depth", DEPTHS)
def test_depth_and_shortcut_are_read_off_the_weights(depth: int, shortcut: str) -> None:
    with torch.device("meta"):
        network = build(f"resnet{depth}", shortcut=shortcut, num_classes=100)
    found = recognised(network.state_dict())
    expected = {"width": 16, "num_classes": 100, "in_channels": 3, "shortcut": shortcut}
    assert found == (f"resnet{depth}", expected)


def test_an_odd_number_of_channels_is_padded_to_the_next_stage() -> None:
    assert build("resnet20", width=3)(torch.rand(1, 3, 9, 9)).shape == (1, 10)


def test_nodes() -> None:
    features, _ = passed(build("resnet56", width=4).eval())
    assert [tuple(f.shape[1:]) for f in features] == [(4, 32, 32), (4, 32, 32), (8, 16, 16), (16, 8, 8), (16, 8, 8)]
    assert build("resnet20").node_table["D"] == "layer3.1.relu2"


def test_an_unknown_shortcut() -> None:
    with pytest.raises(InputError, match="unknown shortcut 'pad'; did you mean padded"):
        build("resnet20", shortcut="pad")
