"""Calls of activation functions against torchvision's feature extractor, and every way to write a ReLU."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import _len_torch_function_stack
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from coprobe.errors import InputError
from coprobe.nodes import masked, places, record, resolve
from tests.attacks.small import fingerprint
from tests.families import functional_resnet
from tests.nodes.networks import images

WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "F.relu in place by position": lambda x: F.relu(x, True),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "Tensor.relu": lambda x: x.relu(),
    "Tensor.relu_": lambda x: x.relu_(),
    "clamp": lambda x: x.clamp(min=0),
    "clamp by position": lambda x: torch.clamp(x, 0),
    "clamp_": lambda x: x.clamp_(min=0.0),
    "clamp_min": lambda x: x.clamp_min(0),
    "clamp_min_": lambda x: x.clamp_min_(0),
    "clip": lambda x: x.clip(0),
    "F.relu6": F.relu6,
    "clamp to 6": lambda x: x.clamp(0, 6),
    "hardtanh": lambda x: F.hardtanh(x, 0, 6),
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "module 6": nn.ReLU6(),
}


class Writes(nn.Module):
    """Negates, rectifies by the given function, which may be a module, and ignores what it returns or not."""

    def __init__(self, way: Any, ignores: bool = False) -> None:
        super().__init__()
        self.way, self.ignores = way, ignores
        self.child = nn.Identity()  # without it, this would be an activation module itself

    def forward(self, x: Tensor) -> Tensor:
        y = 0.5 - x
        z = self.way(y)
        return (y if self.ignores else z) * 2


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_a_relu(way: str) -> None:
    model, x = nn.Sequential(Writes(WAYS[way])), images()
    expected = (0.5 - x).relu()
    logits = model(x)
    with record(model, ["0#relu1"]) as seen:
        assert torch.equal(model(x), logits)
    assert torch.equal(seen["0#relu1"], expected)
    expected[:, 1] = 0
    with masked(model, {"0#relu1": [1]}):
        assert torch.equal(model(x), 2 * expected)


IN_PLACE = [way for way in WAYS if way.endswith("_") or "in place" in way]


@pytest.mark.parametrize("ignores", [False, True])
@pytest.mark.parametrize("way", IN_PLACE)
def test_a_mask_of_what_works_in_place(way: str, ignores: bool) -> None:
    """A caller who ignores the result sees the mask too, and gradients are those of the twin that is not in place."""
    model, x = nn.Sequential(Writes(WAYS[way], ignores)), images().requires_grad_()
    twin = 2 * (0.5 - x).relu() * torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    (expected,) = torch.autograd.grad(twin.square().sum(), x)
    for node in ["0#relu1"] + ["0.way"] * isinstance(WAYS[way], nn.Module):
        with masked(model, {node: [1]}), record(model, [node]) as seen:
            result = model(x)
        (gradient,) = torch.autograd.grad(result.square().sum(), x)
        assert torch.equal(result, twin) and torch.equal(gradient, expected) and gradient.any()
        assert torch.equal(seen[node] * 2, twin)


@pytest.mark.parametrize(
    ("way", "function"),
    [
        (F.gelu, "gelu"),
        (nn.GELU(), "gelu"),
        (F.silu, "silu"),
        (nn.SiLU(inplace=True), "silu"),
        (F.elu_, "elu"),
        (F.leaky_relu_, "leaky_relu"),
        (nn.Hardswish(), "hardswish"),
        (nn.Mish(), "mish"),
        (lambda x: F.prelu(x, torch.tensor(0.2)), "prelu"),
    ],
)
def test_other_activation_functions(way: Any, function: str) -> None:
    model, x = nn.Sequential(Writes(way)), images()
    with torch.no_grad(), record(model, [f"0#{function}1"]) as seen:
        assert torch.equal(seen.setdefault("logits", model(x)), 2 * seen[f"0#{function}1"])


@pytest.mark.parametrize(
    "way",
    [lambda x: x.clamp(0, 1), lambda x: x.clamp(-1), lambda x: x.clamp(max=0), abs, torch.square, lambda x: x + 2 * x],
)
def test_what_is_no_activation_function(way: Any) -> None:
    assert places(nn.Sequential(Writes(way)), (2, 4, 5)) == []


def test_a_module_with_weights_calls_for_itself() -> None:
    model, x = nn.Sequential(Writes(nn.PReLU())), images()
    with record(model, ["0.way", "0.way#prelu1"]) as seen:
        model(x)
    assert torch.equal(seen["0.way"], seen["0.way#prelu1"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "0#sinh1",
            "node '0#sinh1': 'sinh1' is no call of an activation function; write relu1 for the first ReLU, or ",
        ),
        ("0#relu", "node '0#relu': 'relu' is no call of an activation function; write relu1 for the first ReLU, or "),
        ("0#relu0", "node '0#relu0': 'relu0' is no call of"),
        ("0#relu1:in", "node '0#relu1:in': a call of a function is probed at its output; leave out ':in'"),
        ("1#relu1", "unknown node '1#relu1'; "),
        (
            "0.way#relu1",
            "node '0.way#relu1': an activation module's calls are those of the module around it; write 0.way, ",
        ),
    ],
)
def test_names_of_calls_that_can_not_be(name: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        resolve(nn.Sequential(Writes(nn.ReLU())), name)
    assert str(error.value).startswith(message) and len(str(error.value)) <= 300


def of_extractor(model: nn.Module, names: list[str], x: Tensor) -> list[Tensor]:
    """What torchvision's feature extractor, which rewrites the network's graph, gives for its own names."""
    return list(create_feature_extractor(model, names)(x).values())


@pytest.mark.parametrize("make", [lambda: functional_resnet(8), lambda: resnet18(num_classes=10)])
def test_activations_are_those_of_the_feature_extractor(make: Callable[[], nn.Module]) -> None:
    """Criterion: a network that calls F.relu, and torchvision's, which reuses one in-place module per block."""
    torch.manual_seed(0)
    model, x = make().eval(), torch.rand(2, 3, 32, 32)
    in_graph = [name for name in get_graph_node_names(model)[1] if "relu" in name]
    ours = [place.path for place in places(model, (3, 32, 32))]
    assert len(ours) == len(in_graph) == 17
    with torch.no_grad(), record(model, ours) as seen:
        logits = model(x)
        assert torch.equal(logits, model(x))
        for name, expected in zip(ours, of_extractor(model, in_graph, x), strict=True):
            assert torch.equal(seen[name], expected), name


def test_the_extractor_overlooks_what_is_changed_in_place_afterwards_and_we_do_not() -> None:
    """Why it is an oracle for ReLUs only: it hands out the tensor itself."""
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(inplace=True)).eval()
    with torch.no_grad(), record(model, ["0"]) as seen:
        model(images())
        assert (seen["0"] < 0).any() and not (of_extractor(model, ["0", "1"], images())[0] < 0).any()


class Untraceable(nn.Module):
    """Its path depends on the values, and a module is executed twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block = nn.Sequential(nn.Conv2d(2, 2, 1), Writes(torch.relu))

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = self.block(x)
        return F.relu(self.block(x) - 0.5)


def test_calls_of_a_module_are_numbered_through_a_pass() -> None:
    model, x = Untraceable().eval(), images()
    first = (0.5 - model.block[0](x)).relu()
    second = (0.5 - model.block[0](2 * first)).relu()
    with record(model, ["block.1#relu1", "block.1#relu2", "#relu1"]) as seen:
        for _ in range(2):
            result = model(x)
    assert torch.equal(seen["block.1#relu1"], first) and torch.equal(seen["block.1#relu2"], second)
    assert torch.equal(seen["#relu1"], result)
    with masked(model, {"block.1#relu2": [0]}), record(model, ["block.1#relu1", "block.1#relu2"]) as seen:
        model(x)
    assert torch.equal(seen["block.1#relu1"], first) and not seen["block.1#relu2"][:, 0].any()
    with pytest.raises(InputError, match="#relu2': no pass comes by it"), record(model, ["block.1#relu2"]):
        model(-x)


@pytest.mark.parametrize("masked_first", [True, False])
@pytest.mark.parametrize("way", ["F.relu", "F.relu_"])
def test_the_outer_context_comes_first(masked_first: bool, way: str) -> None:
    model, x = nn.Sequential(Writes(WAYS[way])), images()
    outer, inner = masked(model, {"0#relu1": [1]}), record(model, ["0#relu1"])
    if masked_first:
        with outer, inner as seen:
            model(x)
    else:
        with inner as seen, outer:
            model(x)
    assert seen["0#relu1"][:, 0].any() and seen["0#relu1"][:, 1].any() != masked_first


class Failing(nn.Module):
    """Raises within a ReLU's owner, which the network around survives."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Writes(self.fail)

    def fail(self, x: Tensor) -> Tensor:
        F.relu(x)
        raise ArithmeticError

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.inner(x)
        except ArithmeticError:
            return F.relu(x)


@pytest.mark.parametrize("error", [ArithmeticError, KeyboardInterrupt])
def test_nothing_listens_after_an_error(error: type[BaseException]) -> None:
    model = nn.Sequential(Failing())
    before = fingerprint(model)
    with record(model, ["0#relu1", "0.inner#relu1"]) as seen:
        assert torch.equal(model(images()), seen["0#relu1"])
        assert _len_torch_function_stack() == 0

    def fail(*_: Any) -> None:
        raise error

    handle = model[0].inner.register_forward_hook(fail)
    model[0].inner.way = torch.relu
    with pytest.raises(error), record(model, ["0.inner#relu1"]):
        nn.Sequential(model[0].inner)(images())
    handle.remove()
    assert _len_torch_function_stack() == 0 and fingerprint(model) == before


def test_a_call_in_what_is_computed_again_for_the_gradient_is_masked_again() -> None:
    class Saving(nn.Module):
        def __init__(self, saves: bool) -> None:
            super().__init__()
            self.saves, self.body = saves, Untraceable()

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.body, x, use_reentrant=False) if self.saves else self.body(x)

    gradients = []
    for saves in (True, False):
        model, x = Saving(saves), images().requires_grad_()
        with masked(model, {"body.block.1#relu2": [1]}), record(model, ["body#relu1"]) as seen:
            logits, before = model(x), seen["body#relu1"]
            gradients += torch.autograd.grad(logits.exp().sum(), x)
        assert seen["body#relu1"] is before
    assert torch.equal(*gradients) and gradients[0].any()


def test_a_module_of_two_names() -> None:
    shared = nn.ReLU()
    model, x = (
        nn.Sequential(nn.Sequential(nn.Conv2d(2, 2, 1), shared), nn.Sequential(nn.Conv2d(2, 2, 1), shared)),
        images(),
    )
    assert [place.path for place in places(model, (2, 4, 5))] == ["0#relu1", "1#relu1"]
    with pytest.raises(InputError, match="': that module is called 2 times in a pass"), record(model, ["1.1"]):
        model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with record(model, ["1#relu1"]) as seen:
            assert torch.equal(model(x), seen["1#relu1"])
