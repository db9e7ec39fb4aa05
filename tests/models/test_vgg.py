from __future__ import annotations

import pytest
import torch

from coprobe.models import build
from tests.models.passed import passed

DEPTHS = {"vgg11": (1, 1, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}


@pytest.mark.parametrize("arch", DEPTHS)
def test_parameter_count(arch: str) -> None:
    planes = [
        multiple * 64 for depth, multiple in zip(DEPTHS[arch], (1, 2, 4, 8, 8), strict=True) for _ in range(depth)
    ]
    # per convolution 9·in·out weights and out biases, per batch norm 2·out; then the linear layer
    expected = sum(9 * i * o + 3 * o for i, o in zip([3, *planes], planes, strict=False)) + 512 * 10 + 10
    with torch.device("meta"):
        network = build(arch)
    assert sum(p.numel() for p in network.parameters()) == expected


def test_weights_have_the_public_names() -> None:
    shapes = {name: tuple(w.shape) for name, w in build("vgg16", width=4).state_dict().items()}
    expected = {
        "features.0.weight": (4, 3, 3, 3),
        "features.0.bias": (4,),
        "features.1.running_mean": (4,),
        "features.3.weight": (4, 4, 3, 3),
        "features.7.weight": (8, 4, 3, 3),
        "features.40.weight": (32, 32, 3, 3),
        "features.41.weight": (32,),
        "classifier.weight": (10, 32),
    }
    assert {name: shapes.get(name) for name in expected} == expected


@pytest.mark.parametrize("arch", DEPTHS)
def test_nodes(arch: str) -> None:
    network = build(arch, width=4).eval()
    assert sum(isinstance(m, torch.nn.ReLU) for m in network.modules()) == sum(DEPTHS[arch])
    for path in network.node_table.values():
        index = int(path.removeprefix("features."))
        assert isinstance(network.features[index + 1], torch.nn.MaxPool2d)
    features, logits = passed(network)
    shapes = [tuple(f.shape[1:]) for f in features]
    assert shapes == [(4, 32, 32), (8, 16, 16), (16, 8, 8), (32, 4, 4), (32, 2, 2)]
    torch.testing.assert_close(logits, network.classifier(features[-1].amax((2, 3))))
