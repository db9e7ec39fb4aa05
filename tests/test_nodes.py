from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coprobe.errors import InputError, RunError
from coprobe.models import ARCHITECTURES, Classifier, build
from coprobe.nodes import Place, masked, network_of, node_table, places, record, resolve
from tests.attacks.small import fingerprint


def plain(inplace: bool = False) -> nn.Sequential:
    """0 conv, 1 BN, 2 ReLU, 3 flatten, 4 linear, 5 ReLU, 6 linear; images 2×4×5, three classes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=inplace),
        nn.Flatten(),
        nn.Linear(120, 7),
        nn.ReLU(inplace=inplace),
        nn.Linear(7, 3),
    ).eval()


class Named(nn.Module):
    """A network with letters, one module that it never calls, and one that passes a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.node_table = {"A": "body.2", "B": "body.5"}
        self.body = plain()
        self.idle = nn.ReLU()
        self.pair = Pair()

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(self.body(x))[0]


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None


def images(batch: int = 3) -> Tensor:
    return torch.rand(batch, 2, 4, 5, generator=torch.Generator().manual_seed(1))


def test_resolve() -> None:
    network = Named()
    model = Classifier(network, [0.5, 0.5], [0.2, 0.2])
    assert network_of(model) is network and network_of(network) is network
    assert node_table(model) == network.node_table and node_table(plain()) == {}
    letter, path, side = (resolve(model, name) for name in ("A", "body.2", "B:in"))
    assert (letter.name, letter.path, letter.module, letter.at_input) == ("A", "body.2", network.body[2], False)
    assert (path.name, path.module) == ("body.2", network.body[2])
    assert (side.name, side.path, side.module, side.at_input) == ("B:in", "body.5", network.body[5], True)


def test_only_a_classifier_hides_its_network() -> None:
    class Headed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.head = plain(), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.network(x))

    with record(Headed(), ["head", "network.2"]) as seen:
        logits = Headed()(images())
        assert not seen
    model = Headed()
    with record(model, ["head", "network.2"]) as seen:
        logits = model(images())
    assert torch.equal(seen["head"], logits) and seen["network.2"].shape == (3, 6, 4, 5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("boddy.2", "unknown node 'boddy.2'; did you mean body.2 or "),
        ("", "unknown node ''; choose from A, B, body, "),
        (":in", "unknown node ':in'; choose from A, B, body, "),
        ("F", "unknown node 'F'; choose from A, B, body, "),
        ("A:out", "node 'A:out': 'out' is no side of a module; write A or A:in"),
        ("A:in:in", "node 'A:in:in': 'in:in' is no side of a module; write A or A:in"),
    ],
)
def test_unknown_nodes(name: str, message: str) -> None:
    model = Named()
    for context in (record(model, ["A", name]), masked(model, {"A": [0], name: [0]})):
        before = fingerprint(model)
        with pytest.raises(InputError) as error, context:
            pass
        assert str(error.value).startswith(message) and "\n" not in str(error.value)
        assert fingerprint(model) == before


def stages(model: nn.Sequential, x: Tensor) -> list[Tensor]:
    """The input and then what each module gives, each a copy."""
    passed = [x.clone()]
    for module in model:
        passed.append(module(passed[-1].clone()))
    return [value.detach().clone() for value in passed]


@pytest.mark.parametrize("inplace", [False, True])
def test_several_nodes_in_one_pass(inplace: bool) -> None:
    model, x = plain(inplace), images()
    expected = stages(model, x)
    names = ["1", "2", "2:in", "0:in", "5", "4", "5:in", "6"]
    with torch.no_grad(), record(model, names) as seen:
        model(x)
    at = {"1": 2, "2": 3, "2:in": 2, "0:in": 0, "5": 6, "4": 5, "5:in": 5, "6": 7}
    assert set(seen) == set(names)
    for name, stage in at.items():
        assert torch.equal(seen[name], expected[stage]), name
    # the oracle sees an in-place ReLU only where there is something to rectify
    assert (seen["1"] < 0).any() and (seen["4"] < 0).any()


@pytest.mark.parametrize("inplace", [False, True])
def test_recording_leaves_logits_gradients_and_model_as_they_are(inplace: bool) -> None:
    model, x = plain(inplace), images().requires_grad_()
    logits = model(x)
    (gradient,) = torch.autograd.grad(logits.logsumexp(1).sum(), x)
    before = fingerprint(model)
    with record(model, ["0:in", "1", "2", "4", "5:in"]) as seen:
        again = model(x)
    (gradient_again,) = torch.autograd.grad(again.logsumexp(1).sum(), x)
    assert torch.equal(again, logits) and torch.equal(gradient_again, gradient)
    assert fingerprint(model) == before
    assert all(activation.requires_grad for activation in seen.values())


@pytest.mark.parametrize("inplace", [False, True])
def test_loss_at_a_node_has_the_gradient_of_the_shortened_network(inplace: bool) -> None:
    model, x = plain(inplace), images().requires_grad_()
    with record(model, ["1"]) as seen:
        model(x)
    (recorded,) = torch.autograd.grad(seen["1"].square().sum(), x)
    (expected,) = torch.autograd.grad(model[1](model[0](x)).square().sum(), x)
    assert torch.equal(recorded, expected)


def test_later_pass_replaces_and_recording_ends_with_the_block() -> None:
    model = plain()
    with record(model, ["2"]) as seen:
        model(images(1))
        model(images(2))
    model(images(3))
    assert len(seen["2"]) == 2


def test_of_a_module_called_twice_the_last_call_is_recorded_and_both_are_masked() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.relu(x) + 1)

    model, x = Twice(), images()
    with record(model, ["relu"]) as seen:
        assert torch.equal(model(x), seen["relu"])
    with masked(model, {"relu": [0]}), record(model, ["relu:in"]) as seen:
        assert not model(x)[:, 0].any()
    assert torch.equal(seen["relu:in"][:, 0], torch.ones(3, 4, 5))


def test_input_of_a_module_keeps_its_other_arguments() -> None:
    class Scale(nn.Module):
        def forward(self, x: Tensor, factor: float) -> Tensor:
            return x * factor

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = Scale()

        def forward(self, x: Tensor) -> Tensor:
            return self.scale(x, 3.0)

    model, x = Outer(), images()
    with masked(model, {"scale:in": [1]}):
        scaled = model(x)
    assert torch.equal(scaled[:, 0], x[:, 0] * 3) and not scaled[:, 1].any()


@pytest.mark.parametrize("context", [lambda m: record(m, ["A", "B:in"]), lambda m: masked(m, {"A": [0], "B:in": [1]})])
@pytest.mark.parametrize("failing", ["inside", "in the model", "nowhere"])
def test_hooks_are_gone_afterwards(context: Any, failing: str) -> None:
    model = Named()
    before = fingerprint(model)
    x = images() if failing != "in the model" else torch.zeros(1, 3, 4, 5)
    try:
        with context(model):
            assert sum(fingerprint(model)["hooks"]) == sum(before["hooks"]) + 2
            model(x)
            if failing == "inside":
                raise KeyError
    except (KeyError, RuntimeError):
        assert failing != "nowhere"
    assert fingerprint(model) == before


def test_node_that_is_never_called_or_was_not_asked_for() -> None:
    model = Named()
    with record(model, ["idle", "A"]) as seen:
        model(images())
    assert "A" in seen and "idle" not in seen
    for name in ("idle", "B"):
        with pytest.raises(RunError) as error:
            seen[name]
        shown = f"node '{name}' saw nothing: it was not asked for, or no forward pass called that module"
        assert str(error.value) == shown


@pytest.mark.parametrize("context", [lambda m, n: record(m, [n]), lambda m, n: masked(m, {n: [0]})])
def test_module_that_passes_no_tensor(context: Any) -> None:
    model = Named()
    before = fingerprint(model)
    with pytest.raises(InputError) as error, context(model, "pair"):
        model(images())
    assert str(error.value) == "node 'pair': 'pair' passes a tuple, not a tensor; choose another node"
    assert fingerprint(model) == before


@pytest.mark.parametrize("name", ["2", "5", "0:in", "4", "5:in"])
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("channels", [[0], [1, 0], [1, 1]])
def test_masked_channels_are_zero_and_the_others_untouched(name: str, batch: int, channels: list[int]) -> None:
    model, x = plain(inplace=True), images(batch)
    stage = {"2": 3, "5": 6, "0:in": 0, "4": 5, "5:in": 5}[name]
    hidden = stages(model, x)[stage]
    hidden[:, channels] = 0
    expected = stages(model[stage:], hidden)[-1]
    with torch.no_grad(), masked(model, {name: channels}):
        assert torch.equal(model(x), expected)
    assert torch.equal(model(x), stages(model, x)[-1])


def test_masks_at_several_nodes_and_none_at_all() -> None:
    model, x = Named(), images()
    logits = model(x)
    with masked(model, {}):
        assert torch.equal(model(x), logits)
    with masked(model, {"A": [], "B": ()}):
        assert torch.equal(model(x), logits)
    with masked(model, {"A": range(6), "B": [1, 2]}), record(model, ["A", "B"]) as seen:
        model(x)
    assert not seen["A"].any() and not seen["B"][:, 1:3].any()


def test_two_names_of_one_place_mask_both_choices() -> None:
    model = Named()
    with masked(model, {"A": [0], "body.2": [3]}), record(model, ["A"]) as seen:
        model(images())
    zero = [not seen["A"][:, k].any() for k in range(6)]
    assert zero[0] and zero[3] and not all(zero)


@pytest.mark.parametrize("masked_first", [True, False])
def test_the_outer_context_comes_first(masked_first: bool) -> None:
    """A recording inside a mask sees it; one around a mask sees what was there before."""
    model, x = plain(), images()
    if masked_first:
        with masked(model, {"2": [1]}), record(model, ["2"]) as seen:
            model(x)
    else:
        with record(model, ["2"]) as seen, masked(model, {"2": [1]}):
            model(x)
    assert seen["2"][:, 0].any() and seen["2"][:, 1].any() != masked_first


def test_no_gradient_passes_a_masked_channel() -> None:
    model, x = plain(), images().requires_grad_()
    with masked(model, {"2": range(1, 6)}):
        (gradient,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
    only = nn.Sequential(*plain())
    with torch.no_grad():
        only[4].weight.view(7, 6, 20)[:, 1:] = 0
    (expected,) = torch.autograd.grad(only(x)[:, 0].sum(), x)
    assert gradient.any() and torch.allclose(gradient, expected, atol=1e-7)


@pytest.mark.parametrize(("name", "count"), [("A", 6), ("B", 7)])
@pytest.mark.parametrize("wrong", [-1, 99])
def test_wrong_channel(name: str, count: int, wrong: int) -> None:
    model = Named()
    before = fingerprint(model)
    with pytest.raises(InputError) as error, masked(model, {name: [0, wrong]}):
        model(images())
    assert str(error.value) == f"node '{name}' has channels 0 to {count - 1}, not {wrong}"
    assert fingerprint(model) == before


def test_masking_what_has_no_channels() -> None:
    model = nn.Sequential(nn.Flatten(0), nn.ReLU())
    with pytest.raises(InputError) as error, masked(model, {"1": [0]}):
        model(images(1))
    assert str(error.value) == "node '1' has no channels: its shape is (40,)"


def test_nothing_is_kept_alive() -> None:
    gc.collect()
    gc.disable()  # freed at once means: no cycle was made
    try:
        model = Named()
        with masked(model, {"A": [0]}), record(model, ["A", "B:in"]) as seen:
            model(images())
        watched = [weakref.ref(seen["A"]), weakref.ref(model.body[2])]
        del seen
        assert watched[0]() is None
        del model
    finally:
        gc.enable()
    gc.collect()
    assert watched[1]() is None


@pytest.mark.parametrize("arch", list(ARCHITECTURES))
def test_places_of_every_architecture(arch: str) -> None:
    network = build(arch, width=4).train()
    model = Classifier(network, [0.5] * 3, [0.2] * 3)
    before = fingerprint(model)
    found = places(model, (3, 32, 32))
    assert fingerprint(model) == before
    relus = [name for name, module in network.named_modules() if isinstance(module, nn.ReLU)]
    assert [place.path for place in found] == relus
    assert {place.letter: place.path for place in found if place.letter} == network.node_table
    assert [place.letter for place in found if place.letter] == list("ABCDE")
    with torch.no_grad(), record(model, relus) as seen:
        model(torch.rand(2, 3, 32, 32))
    assert [place.shape for place in found] == [tuple(seen[path].shape[1:]) for path in relus]


def test_places_are_in_the_order_of_execution_and_only_those_that_run() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.node_table = {"A": "pool"}
            self.last, self.idle, self.first, self.pool = nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.AdaptiveAvgPool2d(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(self.last(self.first(x)))

    expected = [Place("first", "", (2, 4, 5)), Place("last", "", (2, 4, 5)), Place("pool", "A", (2, 1, 1))]
    assert places(Reversed(), (2, 4, 5)) == expected


def test_places_of_a_model_in_double() -> None:
    assert [place.path for place in places(plain().double(), (2, 4, 5))] == ["2", "5"]
