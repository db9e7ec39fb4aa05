from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from coprobe.models import build
from tests.models.passed import passed
from tests.models.recognised import recognised


@pytest.mark.parametrize(
    ("arch", "count"), [("resnet18", 11_173_962), ("resnet34", 21_282_122), ("resnet50", 23_520_842)]
)
def test_parameter_count(arch: str, count: int) -> None:
    with torch.device("meta"):
        network = build(arch)
    assert sum(p.numel() for p in network.parameters()) == count


def test_weights_have_the_public_names() -> None:
    shapes = {name: tuple(w.shape) for name, w in build("resnet18", width=4).state_dict().items()}
    assert len(shapes) == 122
    expected = {
        "conv1.weight": (4, 3, 3, 3),
        "bn1.running_var": (4,),
        "layer1.0.conv1.weight": (4, 4, 3, 3),
        "layer2.0.bn1.bias": (8,),
        "layer2.0.shortcut.0.weight": (8, 4, 1, 1),
        "layer2.0.shortcut.1.weight": (8,),
        "layer4.1.conv2.weight": (32, 32, 3, 3),
        "linear.weight": (10, 32),
        "linear.bias": (10,),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert "layer1.0.shortcut.0.weight" not in shapes
    deep = build("resnet50", width=4).state_dict()
    assert deep["layer1.0.shortcut.0.weight"].shape == (16, 4, 1, 1)
    assert deep["layer3.5.conv3.weight"].shape == (64, 16, 1, 1)


@pytest.mark.parametrize(
    ("arch", "relu_count", "paths", "expansion"),
    [
        ("resnet18", 17, "layer1.1.relu2 layer2.1.relu2 layer3.1.relu2 layer4.1.relu2", 1),
        ("resnet34", 33, "layer1.2.relu2 layer2.3.relu2 layer3.5.relu2 layer4.2.relu2", 1),
        ("resnet50", 49, "layer1.2.relu3 layer2.3.relu3 layer3.5.relu3 layer4.2.relu3", 4),
    ],
)
def test_nodes(arch: str, relu_count: int, paths: str, expansion: int) -> None:
    network = build(arch, width=4).eval()
    assert sum(isinstance(m, torch.nn.ReLU) for m in network.modules()) == relu_count
    assert network.node_table == dict(zip("ABCDE", ["relu", *paths.split()], strict=True))
    features, logits = passed(network)
    shapes = [tuple(f.shape[1:]) for f in features]
    assert shapes == [(4, 32, 32)] + [(4 * expansion * 2**i, 32 // 2**i, 32 // 2**i) for i in range(4)]
    torch.testing.assert_close(logits, network.linear(features[-1].mean((2, 3))))


@pytest.mark.real
def test_a_public_checkpoint_gives_the_logits_of_its_own_code() -> None:
    examples = Path(pytest.importorskip("pyautoattack").__file__).parent / "examples"
    if not (examples / "model_test.pt").exists():
        pytest.skip("this pyautoattack carries no example checkpoint")
    state_dict = torch.load(examples / "model_test.pt", map_location="cpu", weights_only=True)
    spec = importlib.util.spec_from_file_location("pyautoattack_example_resnet", examples / "resnet.py")
    assert spec is not None
    assert spec.loader is not None
    public = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(public)
    theirs = public.ResNet18().eval()
    theirs.load_state_dict(state_dict)

    arch, arch_args = recognised(state_dict)
    assert (arch, arch_args["width"]) == ("resnet18", 64)
    ours = build(arch, **arch_args).eval()
    ours.load_state_dict(state_dict)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-5)
