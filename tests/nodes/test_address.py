from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coprobe.errors import InputError
from coprobe.models import Classifier
from coprobe.nodes import describe_shape, masked, network_of, node_table, record, resolve, tapped
from tests.attacks.small import fingerprint
from tests.nodes.networks import CONTEXTS, Named, images, plain


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
        ("A:out", "node 'A:out': 'out' is neither a side of a module nor a channel; write A, A:in or A:12"),
        ("A:in:in", "node 'A:in:in': 'in:in' is neither a side of a module nor a channel; write A, A:in"),
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


def test_shapes_in_words() -> None:
    shown = [describe_shape(shape) for shape in ((64, 8, 8), (768, 197), (512,))]
    assert shown == ["64 channels × 8 × 8", "768 features × 197 tokens", "512 channels"]


def test_channels() -> None:
    model, x = Named(), images()
    names = ["A", "A:2", "body.2:in", "body.2:in:5", "B:0"]
    with record(model, names) as seen:
        model(x)
    assert torch.equal(seen["A:2"], seen["A"][:, 2:3]) and torch.equal(seen["body.2:in:5"], seen["body.2:in"][:, 5:])
    assert seen["B:0"].shape == (3, 1)
    assert {name: seen.shapes[name] for name in names} == dict(zip(names, [(6, 4, 5)] * 4 + [(7,)], strict=True))
    node = resolve(model, "body.2:in:5")
    assert (node.channel, node.at_input, node.whole, resolve(model, "A").whole) == (5, True, "body.2:in", "A")
    with masked(model, {"A:2": [2]}), record(model, ["A"]) as seen:
        model(x)
    assert [bool(seen["A"][:, k].any()) for k in (1, 2, 3)] == [True, False, True]


@pytest.mark.parametrize("name", ["A", "body.2:in"])
def test_wrong_channels_in_a_name(name: str) -> None:
    model = Named()
    for context in (record(model, [f"{name}:6"]), masked(model, {f"{name}:6": [6]})):
        with pytest.raises(InputError) as error, context:
            model(images())
        assert str(error.value) == f"node '{name}' has channels 0 to 5, not 6"
    with pytest.raises(InputError) as error, masked(model, {f"{name}:2": [3]}):
        model(images())
    assert str(error.value) == f"node '{name}:2' is channel 2 alone, not 3; write {name}"
    with (
        pytest.raises(InputError, match=f"node '{name}:2' is a single channel; write {name}"),
        tapped(model, f"{name}:2"),
    ):
        pass


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda network: torch.compile(network, backend="eager")])
def test_wrapped_models_are_named_but_not_watched(wrap: Any) -> None:
    network = Named()
    model = wrap(Classifier(network))
    assert network_of(model) is network and node_table(model) == network.node_table
    assert resolve(model, "A").module is network.body[2]
    kind = type(model).__name__
    for context in CONTEXTS:
        with pytest.raises(InputError) as error, context(model, "A"):
            pass
        shown = f"the model is inside a {kind}, which passes by hooks; take it out with coprobe.wrap(model)"
        assert str(error.value) == shown
        with pytest.raises(InputError, match="build the network without it"), context(Classifier(wrap(network)), "A"):
            pass
