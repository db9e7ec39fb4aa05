"""Networks to make fast forms of: small ones of the catalogue, and what other people write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coprobe.core.engine import frozen
from coprobe.models import Classifier, build
from coprobe.nodes import masked, record

#: Networks of the catalogue that are small, with the paths of containers to look at besides their nodes.
CATALOGUE: dict[str, tuple[dict[str, Any], list[str]]] = {
    "resnet18": (
        {"width": 4},
        ["layer1.0.conv1", "layer1.0.bn1:in", "layer1.0.bn1", "layer2.0", "layer2.0.shortcut.0"],
    ),
    "resnet50": ({"width": 4}, ["layer1.0.conv3", "layer1.0.bn3", "layer3:in"]),
    "preact-resnet18": ({"width": 4}, ["conv1", "layer1.0.conv1", "layer1.0.bn2:in", "layer1.0.relu2", "layer4"]),
    "wrn-28-10": ({"width": 2}, ["conv1", "block1.layer.1.conv1", "block2.layer.0.bn2:in"]),
    "vgg11": ({"width": 4}, ["features.0", "features.1", "features.1:in", "features.2"]),
}


def unsettled(network: nn.Module) -> nn.Module:
    """The network with statistics and weights of batch norm as after a training."""
    drawn = torch.Generator().manual_seed(5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            shape = (module.num_features,)
            if module.running_mean is not None and module.running_var is not None:
                module.running_mean.copy_(torch.randn(shape, generator=drawn) / 10)
                module.running_var.copy_(torch.rand(shape, generator=drawn) + 0.5)
            if module.weight is not None:
                module.weight.data.copy_(torch.rand(shape, generator=drawn) + 0.5)
                module.bias.data.copy_(torch.randn(shape, generator=drawn) / 10)
    return network.eval()


def classifier(network: nn.Module, channels: int = 3) -> Classifier:
    return Classifier(unsettled(network), [0.4] * channels, [0.25] * channels)


def images(count: int = 4, channels: int = 3, side: int = 16) -> Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(1))


def catalogued(name: str) -> Classifier:
    torch.manual_seed(0)
    arguments, _ = CATALOGUE[name]
    return classifier(build(name, **arguments))


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert (found - expected).abs().amax() <= tolerance * expected.abs().amax()


def passed(model: Classifier, x: Tensor, nodes: list[str]) -> dict[str, Tensor]:
    with frozen(model), torch.no_grad(), record(model, nodes) as seen:
        return {"logits": model(x), **{node: seen[node] for node in nodes}}


def assert_same(model: Classifier, other: Classifier, x: Tensor, nodes: list[str] | tuple[str, ...] = ()) -> None:
    """Logits, activations, and logits behind a mask of the first channel of each node."""
    nodes = list(nodes)
    expected, found = passed(model, x, nodes), passed(other, x, nodes)
    for name, value in expected.items():
        close(found[name], value)
    for node in nodes:
        both = []
        for one in (model, other):
            with frozen(one), torch.no_grad(), masked(one, {node: [0, 1]}):
                both.append(one(x))
        close(both[1], both[0])


def pair(inside: int = 3, outside: int = 4, **settings: Any) -> list[nn.Module]:
    return [nn.Conv2d(inside, outside, 3, padding=1, **settings), nn.BatchNorm2d(outside)]


def head(channels: int = 4) -> list[nn.Module]:
    return [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)]


def sequential(*first: nn.Module, channels: int = 4) -> nn.Sequential:
    return nn.Sequential(*first, *head(channels))


def hooked(change: Callable[[nn.Module], Any], place: int = 0) -> nn.Sequential:
    network = sequential(*pair())
    change(network[place])
    return network


def norms(model: Classifier) -> list[str]:
    return [path for path, module in model.network.named_modules() if isinstance(module, nn.BatchNorm2d)]


def refuse(text: str) -> None:
    pytest.fail(f"it said: {text}")


class Wilful(nn.Module):
    """What torch.fx can't follow: it looks at values. Its parts can be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Sequential(*pair(), nn.ReLU()), nn.Sequential(*pair(4))
        self.head = nn.Sequential(*head())

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(self.second(x) if x.sum() > -1e9 else x)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight
