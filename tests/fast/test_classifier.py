"""The fast form of a model is the model: the same logits, activations, masks and places, with less work."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize, prune

import coprobe.fast.classifier as inference
from coprobe.attacks import parse
from coprobe.core.engine import frozen, layout_of
from coprobe.errors import InputError, RunError
from coprobe.fast.classifier import PRECISIONS, FastClassifier, check_precision, fast, plain
from coprobe.metrics.accuracy import evaluate
from coprobe.models import Classifier, build
from coprobe.nodes import guess_table, masked, node_table, places, record
from tests.nodes.networks import Named

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


def folded_in(model: Classifier) -> list[str]:
    """Paths of batch norms that are there no more."""
    return [path for path, module in model.network.named_modules() if type(module) is nn.Identity]


def norms(model: Classifier) -> list[str]:
    return [path for path, module in model.network.named_modules() if isinstance(module, nn.BatchNorm2d)]


def refuse(text: str) -> None:
    pytest.fail(f"it said: {text}")


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


# The networks of the catalogue.


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


@pytest.mark.parametrize("name", CATALOGUE)
def test_nodes_between_a_convolution_and_its_batch_norm_are_what_they_were(name: str) -> None:
    model, x = catalogued(name), images(side=32)
    inside = CATALOGUE[name][1]
    nodes = [*"ABCDE", *inside]
    made = fast(model, images=x, nodes=nodes, say=refuse)
    assert_same(model, made, x, nodes)
    for node in inside:
        assert_same(model, fast(model, nodes=[node]), x, [node])


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
        if node == "layer1.0#relu1" and "#" not in "".join(place.path for place in places(model, (3, 32, 32))):
            continue
        assert norms(fast(model, nodes=[node])) == kept, node


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


# Networks of other people.


def pair(inside: int = 3, outside: int = 4, **settings: Any) -> list[nn.Module]:
    return [nn.Conv2d(inside, outside, 3, padding=1, **settings), nn.BatchNorm2d(outside)]


def head(channels: int = 4) -> list[nn.Module]:
    return [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)]


class Wilful(nn.Module):
    """What torch.fx can't follow: it looks at values. Its parts can be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Sequential(*pair(), nn.ReLU()), nn.Sequential(*pair(4))
        self.head = nn.Sequential(*head())

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(self.second(x) if x.sum() > -1e9 else x)


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


def sequential(*first: nn.Module, channels: int = 4) -> nn.Sequential:
    return nn.Sequential(*first, *head(channels))


def hooked(change: Callable[[nn.Module], Any], place: int = 0) -> nn.Sequential:
    network = sequential(*pair())
    change(network[place])
    return network


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


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


# The model that was given.


def image_of(model: nn.Module) -> Any:
    """All that could be changed about a model."""
    modules = dict(model.named_modules())
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    of_tensors = {
        name: (id(t), t.numpy(force=True).tobytes(), t.dtype, t.stride(), t.requires_grad, t.grad)
        for name, t in tensors.items()
    }
    of_modules = {name: (id(m), type(m), m.training, sorted(vars(m))) for name, m in modules.items()}
    hooks = {name: [len(v) for key, v in vars(m).items() if key.endswith("_hooks")] for name, m in modules.items()}
    return of_tensors, of_modules, hooks


@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize(
    "make", [lambda: catalogued("resnet18"), lambda: classifier(Wilful()), lambda: classifier(Stubborn())]
)
def test_the_model_that_is_given_is_left_as_it_is(make: Callable[[], Classifier], precision: str) -> None:
    model = make().train()
    next(model.network.modules()).eval()
    next(model.parameters()).requires_grad_(False)
    before, random = image_of(model), torch.get_rng_state()
    products = torch.backends.cuda.matmul.fp32_precision
    made = fast(model, images=images(), precision=precision, say=lambda text: None)
    with frozen(made):
        made(images())
    assert image_of(model) == before and torch.equal(torch.get_rng_state(), random)
    assert torch.backends.cuda.matmul.fp32_precision == products
    if isinstance(made, FastClassifier):
        mine = {id(tensor) for tensor in model.network.state_dict(keep_vars=True).values()}
        assert not mine & {id(tensor) for tensor in made.network.state_dict(keep_vars=True).values()}
        assert not any(module.training for module in made.modules())
        assert not any(parameter.requires_grad for parameter in made.parameters())


def test_its_layout_is_the_fast_one_and_its_gradients_are_those_of_the_model() -> None:
    model, y = catalogued("resnet18"), torch.arange(4)
    made = fast(model, images=images(), say=refuse)
    weight = made.network.get_parameter("layer1.0.conv1.weight")
    assert weight.is_contiguous(memory_format=layout_of(model.network))
    gradients: list[Tensor] = []
    for one in (model, made):
        x = images().requires_grad_()
        with frozen(one):
            gradients += torch.autograd.grad(cross_entropy(one(x), y), x)
    close(gradients[1], gradients[0])
    assert list(made.state_dict()) == [f"network.{name}" for name in made.network.state_dict()]


# Where it can't be had.


class Stubborn(nn.Module):
    """Can't be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.body = sequential(*pair())

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("I am unique")

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Inspector(nn.Module):
    """Computes something else when a batch norm has gone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = sequential(*pair())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + sum(isinstance(module, nn.BatchNorm2d) for module in self.modules())


class Counting(nn.Module):
    """Computes something else in every copy."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.copies = sequential(*pair()), 0

    def __deepcopy__(self, memo: Any) -> Counting:
        other = Counting()
        other.body, other.copies = copy.deepcopy(self.body, memo), 1
        return other

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.copies


def test_a_network_that_cannot_be_copied_runs_as_it_is() -> None:
    said: list[str] = []
    model = classifier(Stubborn())
    made = fast(model, images=images(), precision="bf16", say=said.append)
    assert said == ["the model runs as it is, not in its fast form: TypeError: I am unique"]
    assert type(made) is Classifier and made.network is model.network and made.precision == "bf16"


def test_a_form_that_would_differ_is_caught() -> None:
    said: list[str] = []
    model = classifier(Inspector())
    made = fast(model, images=images(), say=said.append)
    assert isinstance(made, FastClassifier) and norms(made) == ["body.1"]
    assert_same(model, made, images())
    (text,) = said
    assert text.startswith("batch norm is not folded into convolutions: DifferentError: the logits would differ by 0.")
    said.clear()
    model = classifier(Counting())
    assert type(fast(model, images=images(), say=said.append)) is Classifier
    assert len(said) == 1 and said[0].startswith("the model runs as it is, not in its fast form: DifferentError")


def test_activations_that_would_differ_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "_is_between", lambda node, convolution, norm: False)
    said: list[str] = []
    made = fast(catalogued("resnet18"), images=images(), nodes=["layer1.0.conv1"], say=said.append)
    assert "node 'layer1.0.conv1' would differ by" in said[0] and len(norms(made)) == 20


def test_it_warns_where_nobody_is_told() -> None:
    with pytest.warns(UserWarning, match="the model runs as it is"):
        fast(classifier(Stubborn()), images=images())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_the_business_of_others(value: float) -> None:
    model = catalogued("resnet18")
    model.network.get_parameter("layer1.0.conv1.weight").data[0] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = fast(model, images=images(), nodes=["A"])
    assert isinstance(made, FastClassifier)
    from coprobe.attacks import AdversarialExamples
    from tests.toys import grey

    examples = AdversarialExamples(made, grey(4), [parse("fgsm", 8 / 255)])
    with pytest.raises(RunError, match="not finite"):
        evaluate(made, examples)


def test_random_networks_draw_the_same_numbers() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = sequential(*pair())

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) + torch.randn(len(x), 1, device=x.device)

    model = classifier(Noisy())
    made = fast(model, images=images(), say=refuse)
    assert norms(made) == []


# Precisions.


def test_bf16_holds_the_weights_of_known_modules() -> None:
    model, x, y = catalogued("resnet18"), images(side=32), torch.arange(4)
    with frozen(model), torch.no_grad():
        expected = model(x)
    made = fast(model, images=x, nodes=["layer1.0.conv1"], precision="bf16", say=refuse)
    kinds = {name: tensor.dtype for name, tensor in made.network.state_dict().items()}
    assert kinds["linear.weight"] == kinds["conv1.weight"] == torch.bfloat16
    assert kinds["layer1.0.bn1.running_mean"] == torch.float32
    x.requires_grad_()
    with frozen(made):
        logits = made(x)
        (gradient,) = torch.autograd.grad(cross_entropy(logits, y), x)
    close(logits.detach(), expected, 0.05)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0
    close(plain(model, "bf16")(x).detach(), expected, 0.05)
    close(passed(made, x.detach(), ["A", "E"])["A"].float(), passed(model, x.detach(), ["A"])["A"], 0.05)


class Mixing(nn.Module):
    """Has no weights of its own, and float32 in its code."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(*pair()), nn.Sequential(*pair(6), *head())

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head(torch.cat([x, torch.zeros(len(x), 2, *x.shape[2:], device=x.device)], 1))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.body = nn.Parameter(torch.ones(1, 3, 1, 1)), sequential(*pair())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.scale * x)


@pytest.mark.parametrize(
    "make",
    [
        Scaled,
        Mixing,
        lambda: sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)),
        lambda: hooked(lambda m: parametrize.register_parametrization(m, "weight", Doubled())),
    ],
)
def test_bf16_is_autocast_for_other_networks(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = classifier(make()), images()
    made = fast(model, images=x, precision="bf16", say=refuse)
    assert isinstance(made, FastClassifier)
    assert {parameter.dtype for parameter in made.parameters()} == {torch.float32}
    found, expected = passed(made, x, [])["logits"], passed(model, x, [])["logits"]
    close(found, expected, 0.05)
    assert not torch.equal(found, expected)


PRODUCTS: tuple[Any, ...] = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]


def switches() -> tuple[str, str]:
    return PRODUCTS[0].fp32_precision, PRODUCTS[1].fp32_precision


@pytest.fixture
def given_switches() -> Iterator[None]:
    before = switches()
    PRODUCTS[0].fp32_precision, PRODUCTS[1].fp32_precision = "tf32", "ieee"
    yield
    PRODUCTS[0].fp32_precision, PRODUCTS[1].fp32_precision = before


@pytest.mark.parametrize(("precision", "inside"), [("32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee"), (None, "")])
def test_products_are_computed_in_the_precision_of_the_model(
    given_switches: None, precision: str | None, inside: str
) -> None:
    model = nn.Linear(1, 1) if precision is None else Classifier(nn.Identity())
    if precision:
        model.precision = precision
    before = switches()
    for error in (None, KeyError("oh")):
        try:
            with frozen(model):
                assert switches() == ((inside, inside) if inside else before)
                with frozen(model):
                    pass
                assert switches() == ((inside, inside) if inside else before)
                if error:
                    raise error
        except KeyError:
            pass
        assert switches() == before


def test_tf32_is_float32_where_there_is_no_gpu_to_round_it() -> None:
    model, x = catalogued("resnet18"), images()
    for one in (Classifier(model.network), FastClassifier(copy.deepcopy(model.network), model)):
        one.precision = "32"
        expected = one(x)
        one.precision = "tf32"
        assert torch.equal(one(x), expected)


def test_precisions_that_are_not_there() -> None:
    forms: list[Any] = [fast, plain]
    for refused in forms:
        with pytest.raises(InputError, match=r"unknown precision 'half'; choose from 32, tf32, bf16"):
            refused(catalogued("vgg11"), precision="half")
        with pytest.raises(InputError, match="--precision tf32: only CUDA GPUs have it; use 32 or bf16"):
            refused(catalogued("vgg11"), precision="tf32")
    for precision in PRECISIONS:
        check_precision(precision, "cuda")
    with pytest.raises(InputError, match="unknown node 'Z'"):
        fast(catalogued("vgg11"), nodes=["Z"])


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler here")
def test_compiled_passes_are_those_without_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x, y = classifier(sequential(*pair())), images(), torch.arange(4)
    made: Any = fast(model, images=x, compiled=True, say=refuse)
    assert made.compiled and list(made.state_dict()) == [f"network.{name}" for name in made.network.state_dict()]
    assert_same(model, made, x)
    gradients: list[Tensor] = []
    for one in (model, made):
        given = x.clone().requires_grad_()
        with frozen(one):
            gradients += torch.autograd.grad(cross_entropy(one(given), y), given)
    close(gradients[1], gradients[0])
    passes: list[Tensor] = []
    compiled = made._fast[0]
    made._fast[0] = lambda given: (passes.append(given), compiled(given))[1]  # type: ignore[func-returns-value]
    passed(made, x, [])
    assert len(passes) == 1
    assert_same(model, made, x, ["2"])  # two passes of three are recorded or masked
    assert len(passes) == 1


def test_a_compiler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.exc import InductorError

    def fail(given: Tensor) -> Tensor:
        raise InductorError(RuntimeError("No working C++ compiler found"), None)  # type: ignore[arg-type]

    made: Any = fast(classifier(sequential(*pair())), compiled=True)
    made._fast[0] = fail
    with pytest.raises(RunError, match=r"^torch.compile fails \(InductorError: .*compiler.*\); leave out --compile$"):
        made(images())
