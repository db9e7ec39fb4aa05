from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from coprobe.core.engine import frozen
from coprobe.errors import InputError, RunError
from coprobe.nodes import check_neutral, masked, record, tapped
from tests.attacks.small import fingerprint
from tests.nodes.networks import CONTEXTS, Named, images, plain


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


class Twice(nn.Module):
    """One ReLU module that is called twice, and a block that is."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.block = nn.ReLU6(), nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(self.relu(self.relu(x) - 0.5)))


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_module_that_a_pass_calls_twice_is_refused(context: Any) -> None:
    model = nn.Sequential(Twice())
    before = fingerprint(model)
    for name, remedy in {
        "0.relu": "name one call: 0#relu1, 0#relu2",
        "0.relu:in": "name one call: 0#relu1, 0#relu2",
        "0.block": "name a place inside it; 'coprobe nodes' lists them",
    }.items():
        with pytest.raises(InputError) as error, context(model, name):
            model(images())
        assert str(error.value) == f"node '{name}': that module is called 2 times in a pass; {remedy}"
    assert fingerprint(model) == before


def test_what_runs_again_outside_a_pass_is_masked_again_but_not_recorded() -> None:
    """As when activation checkpointing computes a part once more during the backward pass."""

    class Saving(nn.Module):
        def __init__(self, saves: bool) -> None:
            super().__init__()
            self.saves, self.body = saves, plain()

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.body, x, use_reentrant=False) if self.saves else self.body(x)

    gradients = []
    for saves in (True, False):
        model, x = Saving(saves), images().requires_grad_()
        with masked(model, {"body.1": [1], "body.2:in": [2]}), record(model, ["body.1", "body.5"]) as seen:
            logits = model(x)
            before = dict(seen)
            gradients += torch.autograd.grad(logits.logsumexp(1).sum(), x)
        assert all(seen[name] is before[name] for name in seen)
    assert torch.equal(*gradients) and gradients[0].any()


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
            # two of them mark the pass, and two more, for what finds out the axes
            assert sum(fingerprint(model)["hooks"]) == sum(before["hooks"]) + 6
            model(x)
            if failing == "inside":
                raise KeyError
    except (KeyError, RuntimeError):
        assert failing != "nowhere"
    assert fingerprint(model) == before


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", ["idle", "idle:in", "body#gelu1", "#relu1"])
def test_node_that_no_pass_comes_by(context: Any, name: str) -> None:
    model = Named()
    with pytest.raises(InputError) as error, context(model, name):
        model(images())
    assert str(error.value) == f"node '{name}': no pass comes by it; 'coprobe nodes' lists places that it does"


def test_node_that_was_not_asked_for() -> None:
    model = Named()
    with record(model, ["A"]) as seen:
        model.body(images())
        assert not seen, "a part that runs by itself is no pass"
        model(images())
    with pytest.raises(RunError) as error:
        seen["B"]
    shown = "node 'B' saw nothing: it was not asked for, or no forward pass of the network was made"
    assert str(error.value) == shown


@pytest.mark.parametrize("context", CONTEXTS)
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
        with masked(model, {"A": [0], "body#relu2": [1]}), record(model, ["A", "B:in", "body#relu1"]) as seen:
            model(images())
        watched = [weakref.ref(seen["A"]), weakref.ref(model.body[2])]
        del seen
        assert watched[0]() is None
        del model
    finally:
        gc.enable()
    gc.collect()
    assert watched[1]() is None


class Tokens(nn.Module):
    """Images 2×4×5 as 20 tokens of 6 features."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix, self.head = nn.Linear(2, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.embed(x.flatten(2).transpose(1, 2))).mean(1))


def test_features_of_tokens_are_channels() -> None:
    model, x = Tokens(), images()
    expected = model.embed(x.flatten(2).transpose(1, 2))
    with (
        record(model, ["embed", "embed:3"]) as seen,
        masked(model, {"embed": [1, 3]}),
        record(model, ["mix:in"]) as later,
    ):
        logits = model(x)
    assert torch.equal(seen["embed"], expected.transpose(1, 2)) and seen.shapes["embed"] == (6, 20)
    assert torch.equal(seen["embed:3"], expected.transpose(1, 2)[:, 3:4])
    expected[:, :, [1, 3]] = 0
    assert torch.equal(later["mix:in"], expected.transpose(1, 2))
    assert torch.equal(logits, model.head(model.mix(expected).mean(1)))


@pytest.mark.parametrize("name", ["A", "body.2:in", "body#relu1", "B"])
def test_a_tap_shows_the_activation_and_lets_it_through(name: str) -> None:
    model, x = Named(), images()
    logits = model(x)
    with record(model, [name]) as seen, tapped(model, name) as tap:
        through: list[Tensor] = []
        tap.register_forward_hook(lambda module, inputs, output: through.append(output))
        assert torch.equal(model(x), logits)
    assert torch.equal(through[0], seen[name])


class Shaky(nn.Module):
    """Adds noise of torch's generator, or of its own, or something whenever a hook sits on its ReLU."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.relu, self.own = kind, nn.ReLU(), torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        noise = {
            "steady": 0.0,
            "torch": torch.rand(()),
            "own": torch.rand((), generator=self.own),
            "hooked": 1e-6 * len(self.relu._forward_hooks),
            "nan": float("nan"),
        }
        return self.relu(x).mean((2, 3)) + noise[self.kind]


def test_recording_that_changes_logits_is_an_error() -> None:
    for kind in ("steady", "torch", "own", "nan"):
        state = torch.get_rng_state()
        check_neutral(Shaky(kind), images(), ["relu"])
        assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(RunError, match="recording at relu changes the logits of this model, so nothing seen there can"):
        check_neutral(Shaky("hooked"), images(), ["relu"])


def test_attention_is_computed_in_one_way_so_that_recording_is_neutral() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    tokens = torch.randn(3, 5, 8)
    shortcut = torch.backends.mha.get_fastpath_enabled()
    check_neutral(layer, tokens, ["linear1", "norm1", "#relu1"])
    with frozen(layer), torch.no_grad():
        plain = layer(tokens)
        assert not torch.backends.mha.get_fastpath_enabled()
    with frozen(layer), torch.no_grad(), record(layer, ["#relu1"]) as seen:
        assert torch.equal(layer(tokens), plain)
    assert seen["#relu1"].shape == (3, 16, 5)
    assert torch.backends.mha.get_fastpath_enabled() is shortcut


def test_passes_that_cannot_be_masked_say_so() -> None:
    model, x = plain(False).eval(), images()
    with masked(model, {"1": [3]}):
        with pytest.raises(
            InputError, match=r"torch.jit.trace and torch.export can't take a network in a block of mask"
        ):
            torch.jit.trace(model, x)
        with pytest.raises(InputError, match=r"node '1': '1' is run by itself, and only a pass of the whole network"):
            model[:2](x)
        model(x)
        with pytest.raises(InputError, match=r"'1' is run by itself"):
            model[:2](x[:1])
    assert isinstance(torch.jit.trace(model, x), torch.jit.ScriptModule)
