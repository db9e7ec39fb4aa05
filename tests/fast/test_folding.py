"""Batch norm is folded wherever nobody looks, and every place in the network is still there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from coprobe.fast.classifier import FastClassifier, fast
from coprobe.models import Classifier
from coprobe.nodes import guess_table, node_table, places
from tests.fast.networks import (
    CATALOGUE,
    Doubled,
    Wilful,
    assert_same,
    catalogued,
    classifier,
    close,
    head,
    hooked,
    images,
    norms,
    pair,
    passed,
    refuse,
    sequential,
    unsettled,
)  # fmt: skip
from tests.nodes.networks import Named


def folded_in(model: Classifier) -> list[str]:
    """Paths of batch norms that are there no more."""
    return [path for path, module in model.network.named_modules() if type(module) is nn.Identity]


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_network_of_the_catalogue_is_folded_wherever_nobody_looks(name: str) -> None:
    model, x = catalogued(name), images(side=32)
    made = fast(model, images=x, say=refuse)
    assert isinstance(made, FastClassifier)
    assert_same(model, made, x, list("ABCDE"))
    kept = norms(made)
    if name in ("resnet18", "resnet50", "vgg11"):
        assert kept == [] and len(folded_in(made)) >= len(norms(model))
    else:  # batch norm stands before the first convolution of a block, so only some can be folded
        assert 0 < len(kept) < len(norms(model))


@pytest.mark.slow
@pytest.mark.parametrize("name", CATALOGUE)
def test_nodes_between_a_convolution_and_its_batch_norm_are_what_they_were(name: str) -> None:
    model, x = catalogued(name), images(side=32)
    inside = CATALOGUE[name][1]
    assert_same(model, fast(model, images=x, nodes=[*"ABCDE", *inside], say=refuse), x, [*"ABCDE", *inside])
    expected = passed(model, x, inside)
    for node in inside:
        close(passed(fast(model, nodes=[node]), x, [node])[node], expected[node])


@pytest.mark.slow
@pytest.mark.parametrize("name", CATALOGUE)
def test_places_are_the_same_ones(name: str) -> None:
    model = catalogued(name)
    made = fast(model)
    assert places(made, (3, 32, 32)) == places(model, (3, 32, 32))
    assert node_table(made) == node_table(model)
    assert guess_table(made, (3, 32, 32)) == guess_table(model, (3, 32, 32))
    assert [path for path, _ in made.network.named_modules()] == [path for path, _ in model.network.named_modules()]


def test_only_the_pair_that_is_looked_into_is_left_alone() -> None:
    model = catalogued("resnet18")
    for node, kept in {
        "layer1.0.conv1": ["layer1.0.bn1"],
        "layer1.0.bn1:in": ["layer1.0.bn1"],
        "layer1.0.bn1:in:1": ["layer1.0.bn1"],
        "layer1.0.conv1:in": [],
        "layer1.0.bn1": [],
        "layer1.0:in": [],
        "layer1": [],
        "A": [],
        "layer1.0#relu1": [],
    }.items():
        assert norms(fast(model, nodes=[node])) == kept, node


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_networks_of_torchvision(name: str) -> None:
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None, num_classes=10)
    table = guess_table(network, (3, 32, 32))
    model, x = Classifier(unsettled(network), node_table=table), images(side=32)
    made = fast(model, images=x, nodes="ABCDE", say=refuse)
    assert norms(made) == [] and node_table(made) == table
    assert_same(model, made, x, list("ABCDE"))
    assert places(made, (3, 32, 32)) == places(model, (3, 32, 32))


class Flat(nn.Module):
    """A convolution and batch norm, called by code that torch.fx can't follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = pair()
        self.head = nn.Sequential(*head())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bn(self.conv(x)) if float(x.sum()) > -1e9 else x)


class Twice(nn.Module):
    """One convolution under two batch norms, one pair that is called twice, one batch norm behind two convolutions."""

    def __init__(self, wilful: bool = False) -> None:
        super().__init__()
        self.wilful = wilful
        self.shared = nn.Conv2d(3, 4, 1)
        self.left, self.right = (nn.Sequential(self.shared, nn.BatchNorm2d(4)) for _ in range(2))
        self.again = nn.Sequential(*pair(4))
        self.norm = nn.BatchNorm2d(4)
        self.one, self.two = (nn.Sequential(nn.Conv2d(4, 4, 1), self.norm) for _ in range(2))
        self.tied, self.other = nn.Sequential(*pair(4)), nn.Sequential(*pair(4))
        self.other[0].weight = self.tied[0].weight
        self.head = nn.Sequential(*head())

    def forward(self, x: Tensor) -> Tensor:
        if self.wilful and x.sum() < -1e9:
            return x
        x = self.left(x) + self.right(x).relu()
        x = self.again(self.again(x).relu())
        x = self.one(x).relu() + self.two(x)
        return self.head(self.other(self.tied(x).relu()))


class Branches(nn.Module):
    """The convolution's output goes to batch norm and past it; and a weight is used beside its convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = pair()
        self.kernel, self.norm = pair(4)
        self.head = nn.Sequential(*head())

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = self.bn(x).relu() + x
        return self.head(self.norm(self.kernel(x)) + self.kernel.weight.mean())


class Aliased(nn.Module):
    """A module of two names."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"conv": pair()[0]})
        self.conv = self.body["conv"]
        self.block = nn.Sequential(*pair(4))
        self.nickname = self.block
        self.bn, self.head = nn.BatchNorm2d(4), nn.Sequential(*head())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.nickname(self.bn(self.conv(x)).relu()))


class MyConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class MyNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def overridden(module: nn.Module) -> None:
    forward = module.forward
    module.forward = lambda x: 2 * forward(x)


def statistics_free() -> nn.Module:
    return nn.BatchNorm2d(4, track_running_stats=False)


#: By name: a network, the batch norms that are folded, nodes to look at.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[str], list[str]]] = {
    "data-dependent": (Wilful, ["first.1", "second.1"], ["first.0", "first", "second", "second.1:in"]),
    "flat and data-dependent": (Flat, [], ["conv", "bn"]),
    "used twice": (Twice, [], ["left", "shared", "tied.0"][:1]),
    "used twice and data-dependent": (lambda: Twice(wilful=True), ["again.1"], ["left"]),
    "branches": (Branches, [], ["conv", "bn", "kernel"]),
    "aliases": (Aliased, [], ["body.conv", "conv", "block.0", "nickname.0", "bn:in"]),
    "no affine": (lambda: sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), ["1"], ["0", "1"]),
    "no statistics": (lambda: sequential(nn.Conv2d(3, 4, 3), statistics_free()), [], ["1"]),
    "bias": (lambda: sequential(*pair(bias=True), *pair(4, bias=False)), ["1", "3"], ["2", "3"]),
    "groups and stride": (
        lambda: sequential(*pair(3, 6, groups=3, stride=2), *pair(6, 6, groups=6, dilation=2), channels=6),
        ["1", "3"],
        ["2"],
    ),
    "circular": (lambda: sequential(*pair(padding_mode="circular")), ["1"], ["1"]),
    "another order": (lambda: sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), [], []),
    "in place": (lambda: sequential(*pair(), nn.ReLU(inplace=True), *pair(4)), ["1", "4"], ["1", "2", "3", "4"]),
    "1-d": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)), [], []),
    "a hook": (lambda: hooked(lambda m: m.register_forward_hook(lambda m, i, o: 2 * o)), [], ["1"]),
    "a hook before": (lambda: hooked(lambda m: m.register_forward_pre_hook(lambda m, i: (2 * i[0],)), 1), [], ["1"]),
    "a backward hook": (lambda: hooked(lambda m: m.register_full_backward_hook(lambda m, i, o: None), 1), [], []),
    "parametrized": (lambda: hooked(lambda m: parametrize.register_parametrization(m, "weight", Doubled())), [], ["1"]),
    "weight norm": (lambda: hooked(nn.utils.parametrizations.weight_norm), [], ["1"]),
    "pruned": (lambda: hooked(lambda m: prune.l1_unstructured(m, "weight", 0.5)), [], []),
    "overridden": (lambda: hooked(overridden), [], []),
    "my convolution": (lambda: sequential(MyConv(3, 4, 3), nn.BatchNorm2d(4)), [], ["0"]),
    "my norm": (lambda: sequential(nn.Conv2d(3, 4, 3), MyNorm(4)), [], ["0"]),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_other_people(name: str) -> None:
    torch.manual_seed(0)
    make, expected, nodes = NETWORKS[name]
    model, x = classifier(make()), images()
    for made in (fast(model, images=x, say=refuse), fast(model, say=refuse)):  # right without the check as well
        assert isinstance(made, FastClassifier)
        gone = set(folded_in(made)) - set(folded_in(model))
        assert gone == set(expected)
        assert_same(model, made, x)
        assert_same(model, fast(model, images=x, nodes=nodes, say=refuse), x, nodes)
    assert [place.path for place in places(made, (3, 16, 16))] == [place.path for place in places(model, (3, 16, 16))]


def test_the_network_that_the_tests_of_nodes_look_into() -> None:
    model = Classifier(unsettled(Named()))
    x = images(channels=2)[:, :, :4, :5]
    nodes = ["A", "B", "body.0", "body.1:in", "body.3"]
    assert_same(model, fast(model, images=x, nodes=nodes, say=refuse), x, nodes)
    assert folded_in(fast(model, images=x, say=refuse)) == ["body.1"]


def test_code_that_depends_on_the_mode_is_followed_as_it_is_evaluated() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.other, self.head = nn.Sequential(*pair()), nn.Conv2d(3, 4, 1), nn.Sequential(*head())

        def forward(self, x: Tensor) -> Any:
            return (x, x) if self.training else self.head(self.body(x) + self.body[0](x) * 0)

    model = classifier(Auxiliary())
    model.train()
    assert_same(model, fast(model, images=images(), say=refuse), images())
