from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from coprobe.models import build
from coprobe.models.wide_resnet import WideBlock
from tests.models.passed import passed


@pytest.mark.parametrize(("arch", "count"), [("wrn-34-10", 46_160_474), ("wrn-28-10", 36_479_194)])
def test_parameter_count(arch: str, count: int) -> None:
    with torch.device("meta"):
        network = build(arch)
    assert sum(p.numel() for p in network.parameters()) == count


def test_weights_have_the_public_names() -> None:
    shapes = {name: tuple(w.shape) for name, w in build("wrn-28-10", width=32).state_dict().items()}
    expected = {
        "conv1.weight": (16, 3, 3, 3),
        "block1.layer.0.bn1.weight": (16,),
        "block1.layer.0.conv1.weight": (32, 16, 3, 3),
        "block1.layer.0.bn2.running_mean": (32,),
        "block1.layer.0.conv2.weight": (32, 32, 3, 3),
        "block1.layer.0.convShortcut.weight": (32, 16, 1, 1),
        "block2.layer.0.convShortcut.weight": (64, 32, 1, 1),
        "block3.layer.3.conv2.weight": (128, 128, 3, 3),
        "bn1.weight": (128,),
        "fc.weight": (10, 128),
        "fc.bias": (10,),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert "block3.layer.4.bn1.weight" not in shapes
    assert [name for name in shapes if "convShortcut" in name] == [
        f"block{stage}.layer.0.convShortcut.weight" for stage in (1, 2, 3)
    ]


def test_the_stem_keeps_its_channels_and_needs_no_shortcut_at_the_same_width() -> None:
    names = build("wrn-28-10", width=16).state_dict()
    assert names["conv1.weight"].shape[0] == 16
    assert "block1.layer.0.convShortcut.weight" not in names


def test_the_convolution_of_a_shortcut_reads_activated_features_and_the_identity_raw_ones() -> None:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    scale = (1 + 1e-5) ** 0.5
    for planes, stride in ((5, 2), (3, 1)):
        block = WideBlock(3, planes, stride).eval()
        activated = F.relu(x / scale)
        hidden = F.conv2d(activated, block.conv1.weight, stride=stride, padding=1)
        residual = F.conv2d(F.relu(hidden / scale), block.conv2.weight, padding=1)
        shortcut = x if planes == 3 else F.conv2d(activated, block.convShortcut.weight, stride=stride)
        torch.testing.assert_close(block(x), residual + shortcut)


@pytest.mark.parametrize(("arch", "relu_count"), [("wrn-34-10", 31), ("wrn-28-10", 25)])
def test_nodes(arch: str, relu_count: int) -> None:
    network = build(arch, width=4).eval()
    assert sum(isinstance(m, torch.nn.ReLU) for m in network.modules()) == relu_count
    paths = [f"block{stage}.layer.0.relu1" for stage in (1, 2, 3)] + ["block3.layer.2.relu1", "relu"]
    assert network.node_table == dict(zip("ABCDE", paths, strict=True))
    features, logits = passed(network)
    # each stage's result is seen before the next stage halves it
    assert [tuple(f.shape[1:]) for f in features] == [(16, 32, 32), (4, 32, 32), (8, 16, 16), (16, 8, 8), (16, 8, 8)]
    torch.testing.assert_close(logits, network.fc(features[-1].mean((2, 3))))


def test_initial_weights_follow_the_fan_out() -> None:
    torch.manual_seed(0)
    network = build("wrn-28-10", width=32)
    weight = network.get_submodule("block2.layer.0.conv1").weight
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.03)
    assert not network.fc.bias.any()
