"""What holds for every registered architecture; a new one is tested here without a change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from coprobe.models import ARCHITECTURES, Network, build
from tests.models.recognised import recognised

WIDTH = 4
ALL = pytest.mark.parametrize("arch", list(ARCHITECTURES))


def small(arch: str, **arch_args: object) -> Network:
    torch.manual_seed(0)
    return build(arch, **{"width": WIDTH, **arch_args}).eval()


def relus(network: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in network.named_modules() if isinstance(module, nn.ReLU)]


@ALL
@pytest.mark.parametrize("side", [32, 64])
def test_logits_at_both_resolutions(arch: str, side: int) -> None:
    with torch.no_grad():
        logits = small(arch, num_classes=7)(torch.rand(2, 3, side, side))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@ALL
def test_grey_images_at_the_smallest_size(arch: str) -> None:
    network = small(arch, in_channels=1)
    side = network.min_image_size
    assert network(torch.rand(2, 1, side, side)).shape == (2, 10)


@ALL
def test_each_relu_runs_once_in_order_and_not_in_place(arch: str) -> None:
    network = small(arch)
    called: list[str] = []
    for name, relu in relus(network):
        assert not relu.inplace, name
        relu.register_forward_hook(lambda module, args, output, name=name: called.append(name))
    network(torch.rand(1, 3, 32, 32))
    assert called == [name for name, _ in relus(network)]


@ALL
def test_no_relu_is_hidden_in_a_forward(arch: str) -> None:
    traced = torch.fx.symbolic_trace(small(arch))
    functions = [str(node.target) for node in traced.graph.nodes if node.op in ("call_function", "call_method")]
    assert functions
    assert not [name for name in functions if "relu" in name]


@ALL
def test_nodes_are_relus_in_order_and_a_hook_sees_rectified_features(arch: str) -> None:
    network = small(arch)
    assert list(network.node_table) == list("ABCDE")
    order = [name for name, _ in relus(network)]
    assert sorted(network.node_table.values(), key=order.index) == list(network.node_table.values())
    seen: dict[str, torch.Tensor] = {}
    for node, path in network.node_table.items():
        network.get_submodule(path).register_forward_hook(
            lambda module, args, output, node=node: seen.__setitem__(node, output)
        )
    network(torch.rand(2, 3, 32, 32))
    assert set(seen) == set("ABCDE")
    for node, features in seen.items():
        assert features.ndim == 4, node
        assert features.min() == 0, node
        assert features.max() > 0, node


@ALL
def test_the_weights_tell_what_was_built(arch: str) -> None:
    arch_args = {"width": 6, "num_classes": 13, "in_channels": 2}
    name, found = recognised(build(arch, **arch_args).state_dict())
    assert name == arch
    assert {key: found[key] for key in arch_args} == arch_args
    assert recognised(build(arch, **found).state_dict()) == (name, found)


@ALL
def test_facts_for_the_tables(arch: str) -> None:
    entry = ARCHITECTURES.entry(arch)
    assert entry.summary
    assert "\n" not in entry.summary
    assert "arXiv" in entry.source
