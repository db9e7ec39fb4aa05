"""ConvNeXt beside torchvision's, with the same weights."""

from __future__ import annotations

import re

import pytest
import torch
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from coprobe.fast.classifier import FastClassifier, fast
from coprobe.models import Classifier, build
from tests.models.passed import passed
from tests.models.recognised import recognised

DEPTHS = {"convnext-atto": (2, 2, 6, 2), "convnext-tiny": (3, 3, 9, 3)}
#: torchvision's names of modules, and the authors'.
NAMES = (
    (r"features\.0\.", "downsample_layers.0."),
    (r"classifier\.0\.", "norm."),
    (r"classifier\.2\.", "head."),
    (r"block\.0\.", "dwconv."),
    (r"block\.2\.", "norm."),
    (r"block\.3\.", "pwconv1."),
    (r"block\.5\.", "pwconv2."),
    (r"layer_scale", "gamma"),
)


def ours(name: str) -> str:
    for theirs, own in NAMES:
        name = re.sub(theirs, own, name)
    number = int(name.split(".")[1]) if name.startswith("features.") else 0
    kind = f"downsample_layers.{number // 2}" if number % 2 == 0 else f"stages.{number // 2}"
    return name.replace(f"features.{number}", kind)


@pytest.mark.parametrize("arch", DEPTHS)
def test_it_computes_what_torchvision_does(arch: str) -> None:
    torch.manual_seed(0)
    planes = [4, 8, 16, 32, None]
    stages = [CNBlockConfig(planes[n], planes[n + 1], depth) for n, depth in enumerate(DEPTHS[arch])]
    theirs = ConvNeXt(stages, layer_scale=0.5, num_classes=7).eval()
    weights = {ours(name): weight for name, weight in theirs.state_dict().items()}
    weights = {name: weight.flatten() if name.endswith("gamma") else weight for name, weight in weights.items()}
    name, arch_args = recognised(weights)
    assert name == arch
    assert arch_args == {"width": 4, "num_classes": 7, "in_channels": 3, "patch": 4, "layer_scale": True}
    network = build(arch, **arch_args).eval()
    network.load_state_dict(weights)
    x = torch.rand(2, 3, 32, 32)
    assert theirs(x).std() > 0.01
    torch.testing.assert_close(network(x), theirs(x))


@pytest.mark.parametrize("arch", DEPTHS)
def test_nodes(arch: str) -> None:
    network = build(arch, width=4, patch=1).eval()
    for path in network.node_table.values():
        stage, block = map(int, path.split(".")[1:3])
        assert path == "stages.0.0.act" or block == DEPTHS[arch][stage] - 1
    features, _ = passed(network)
    assert [tuple(f.shape[1:]) for f in features] == [(32, 32, 16), (32, 32, 16), (16, 16, 32), (8, 8, 64), (4, 4, 128)]


def test_its_fast_form_holds_bfloat16() -> None:
    torch.manual_seed(0)
    model, x = Classifier(build("convnext-atto", width=8)).eval(), torch.rand(4, 3, 32, 32)
    made = fast(model, images=x, nodes=["A", "stages.1.0.dwconv"], precision="bf16", say=pytest.fail)
    assert isinstance(made, FastClassifier) and made.network.stages[0][0].norm.weight.dtype == torch.bfloat16
    expected = model(x)
    assert 0 < (made(x) - expected).abs().amax() < 0.05 * expected.abs().amax()
