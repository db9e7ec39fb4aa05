"""What holds for every registered architecture; a new one is tested here without a change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from coprobe.models import ARCHITECTURES, Network, build
from coprobe.nodes import record
from coprobe.nodes.functions import FUNCTIONS
from tests.models.recognised import recognised

WIDTH = 4
ALL = pytest.mark.parametrize("arch", list(ARCHITECTURES))


def small(arch: str, **arch_args: object) -> Network:
    torch.manual_seed(0)
    return build(arch, **{"width": WIDTH, **arch_args}).eval()


def activations(network: Network) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in network.named_modules() if isinstance(module, network.activation)]


def last_layer_before(network: Network, path: str) -> nn.Module:
    """The layer with a bias that runs last before this activation function."""
    ran: list[nn.Module] = []
    stop: list[int] = []
    hooks = [m.register_forward_hook(lambda m, i, o: ran.append(m)) for m in network.modules() if own_bias(m)]
    hooks.append(network.get_submodule(path).register_forward_pre_hook(lambda m, i: stop.append(len(ran))))
    network(torch.rand(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    return ran[stop[0] - 1]


def own_bias(module: nn.Module) -> bool:
    return getattr(module, "bias", None) is not None


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
def test_each_activation_function_runs_once_in_order_and_not_in_place(arch: str) -> None:
    network = small(arch)
    called: list[str] = []
    for name, module in activations(network):
        assert not getattr(module, "inplace", False), name
        module.register_forward_hook(lambda module, args, output, name=name: called.append(name))
    network(torch.rand(1, 3, 32, 32))
    assert called == [name for name, _ in activations(network)]


@ALL
def test_no_activation_function_is_hidden_in_a_forward(arch: str) -> None:
    traced = torch.fx.symbolic_trace(small(arch))
    functions = [str(node.target) for node in traced.graph.nodes if node.op in ("call_function", "call_method")]
    assert functions
    assert not [name for name in functions if any(function in name for function in FUNCTIONS)]


@ALL
def test_nodes_are_behind_activation_functions_in_order_with_their_channels_at_the_declared_axis(arch: str) -> None:
    network = small(arch)
    assert list(network.node_table) == list("ABCDE")
    order = [name for name, _ in activations(network)]
    assert sorted(network.node_table.values(), key=order.index) == list(network.node_table.values())
    seen: dict[tuple[str, int], torch.Tensor] = {}
    for node, path in network.node_table.items():
        network.get_submodule(path).register_forward_hook(
            lambda module, args, output, node=node: seen.update({(node, side): output})
        )
    for side in (32, 64):
        network(torch.rand(2, 3, side, side))
    for node in "ABCDE":
        features = seen[node, 32]
        assert features.ndim == 4 and features.std() > 0, node
        # twice the side of the image is twice the side of the features, and as many channels
        grown = [2 * size for size in features.shape[1:]]
        grown[network.node_axis - 1] //= 2
        assert list(seen[node, 64].shape) == [2, *grown], node


@ALL
def test_each_channel_that_is_recorded_is_that_of_the_layer_that_makes_it(arch: str) -> None:
    """The axis is declared at the nodes, and followed at all other places; both are where the layer's own bias acts."""
    network = small(arch)
    x = torch.rand(1, 3, 32, 32)
    for path in ("A", network.node_table["A"] + ":in"):
        with torch.no_grad(), record(network, [path]) as seen:
            network(x)
        before = seen[path]
        maker = last_layer_before(network, network.node_table["A"])
        assert before.shape[1] == len(maker.bias)
        with torch.no_grad():
            maker.bias[1] += 1
        with torch.no_grad(), record(network, [path]) as seen:
            network(x)
        with torch.no_grad():
            maker.bias[1] -= 1
        changed = (seen[path] != before).flatten(2).any(2)[0]
        assert changed.nonzero().flatten().tolist() == [1], path


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
