from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from coprobe.errors import InputError
from coprobe.models import build
from coprobe.models.preact_resnet import PreActBlock
from tests.models.passed import passed
from tests.models.recognised import recognised


@pytest.mark.parametrize(("final_bn", "count"), [(True, 11_172_170), (False, 11_171_146)])
def test_parameter_count(final_bn: bool, count: int) -> None:
    with torch.device("meta"):
        network = build("preact-resnet18", final_bn=final_bn)
    assert sum(p.numel() for p in network.parameters()) == count


def test_weights_have_the_public_names() -> None:
    names = set(build("preact-resnet18", width=4).state_dict())
    expected = "conv1 layer1.0.bn1 layer1.0.conv1 layer1.1.bn2 layer1.1.conv2 layer2.0.shortcut.0 bn linear"
    assert {f"{name}.weight" for name in expected.split()} <= names
    assert "layer1.0.shortcut.0.weight" not in names
    assert "layer2.0.shortcut.1.weight" not in names
    assert "bn1.weight" not in names


def test_both_kinds_of_shortcut() -> None:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for shortcut in ("preactivated", "raw"):
        torch.manual_seed(0)
        block = PreActBlock(3, 5, 2, shortcut).eval()
        activated = F.relu(x / (1 + 1e-5) ** 0.5)
        hidden = F.conv2d(activated, block.conv1.weight, stride=2, padding=1)
        residual = F.conv2d(F.relu(hidden / (1 + 1e-5) ** 0.5), block.conv2.weight, padding=1)
        source = activated if shortcut == "preactivated" else x
        projected = F.conv2d(source, block.shortcut[0].weight, stride=2)
        torch.testing.assert_close(block(x), residual + projected)


def test_the_shortcut_reaches_every_stage_and_has_to_be_known() -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    raw, default = build("preact-resnet18", width=4, shortcut="raw"), build("preact-resnet18", width=4)
    raw.load_state_dict(default.state_dict())
    assert not torch.allclose(raw.eval()(images), default.eval()(images))
    flags = [m.raw_shortcut for m in raw.modules() if isinstance(m, PreActBlock)]
    assert flags == [True] * 8
    with pytest.raises(InputError, match="unknown shortcut 'raws'; did you mean raw"):
        build("preact-resnet18", shortcut="raws")


@pytest.mark.parametrize("final_bn", [True, False])
def test_the_weights_tell_the_final_batch_norm(final_bn: bool) -> None:
    arch, arch_args = recognised(build("preact-resnet18", width=4, final_bn=final_bn).state_dict())
    assert (arch, arch_args["final_bn"]) == ("preact-resnet18", final_bn)
    assert "shortcut" not in arch_args


@pytest.mark.parametrize(("final_bn", "last"), [(True, "relu"), (False, "layer4.1.relu2")])
def test_nodes(final_bn: bool, last: str) -> None:
    network = build("preact-resnet18", width=4, final_bn=final_bn).eval()
    assert sum(isinstance(m, torch.nn.ReLU) for m in network.modules()) == 16 + final_bn
    paths = [f"layer{stage}.0.relu1" for stage in (1, 2, 3, 4)] + [last]
    assert network.node_table == dict(zip("ABCDE", paths, strict=True))
    features, logits = passed(network)
    # each stage's result is seen before the next stage halves it
    assert [tuple(f.shape[1:]) for f in features] == [(4, 32, 32), (4, 32, 32), (8, 16, 16), (16, 8, 8), (32, 4, 4)]
    if final_bn:
        torch.testing.assert_close(logits, network.linear(features[-1].mean((2, 3))))
