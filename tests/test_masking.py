"""Every selector against a literal reference, and what selectors leave behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coprobe.attacks import AdversarialBatch
from coprobe.errors import InputError
from coprobe.masking import SELECTORS, Selection, attributions_for, compared_masks, computable, count_of_percent, select
from coprobe.metrics import ChannelActivations, ChannelStatistics
from coprobe.metrics.accumulator import SUMS
from coprobe.metrics.attribution import Attribution
from coprobe.nodes import NO_MASK, ChannelMask, places
from coprobe.probe import Probe
from tests.toys import EPSILON, checkpoint, grey, same_channels

CAPTUM = pytest.mark.parametrize("name", ["attribution", "conductance"])


def statistics(**columns: list[float]) -> ChannelStatistics:
    """Node A with one position and one image; T_act = tanh(difference_squared · 100 / channels)."""
    channels = len(next(iter(columns.values())))
    zero = {name: [0.0] * channels for name in SUMS}
    numbers = {"channels": channels, "positions": 1, "images": 1, "norm": 0.0}
    return ChannelStatistics(pd.DataFrame({"node": "A", "channel": range(channels), **numbers, **zero, **columns}))


def of_t_act(*values: float) -> ChannelStatistics:
    return statistics(difference_squared=list(np.arctanh(values) * len(values) / 100))


def chosen(name: str, selection: Selection) -> list[tuple[int, ...]]:
    return [mask.channels["A"] for mask in select(name, selection)]


def test_threshold_is_strict() -> None:
    kept = of_t_act(0.2, 0.5, 0.7, 0.0)
    at = kept.t_act("A")[1]
    assert chosen("t-act", Selection(kept, "A", alpha2=at)) == [(2,)]
    assert chosen("t-act", Selection(kept, "A", alpha2=np.nextafter(at, 0))) == [(1, 2)]
    assert chosen("t-act", Selection(kept, "A", alpha2=0.0)) == [(0, 1, 2)]


def test_alpha2_of_1_masks_nothing_even_where_tanh_is_1() -> None:
    saturated = statistics(difference_squared=[1e9, 1e9])
    assert saturated.t_act("A").tolist() == [1.0, 1.0]
    assert chosen("t-act", Selection(saturated, "A", alpha2=1.0)) == [()]


def test_threshold_follows_alpha_and_reading() -> None:
    kept = replace(Selection(of_t_act(0.2, 0.6), "A"), alpha2=0.5)
    assert chosen("t-act", replace(kept, alpha=1.0)) == [()]
    assert chosen("t-act", replace(kept, alpha=1000.0)) == [(0, 1)]
    assert chosen("t-act", replace(kept, reading="mse", alpha=200.0)) == [(0, 1)]


def test_top_orders_channels_that_tanh_cannot_tell_apart() -> None:
    kept = statistics(difference_squared=[50.0, 10.0, 90.0, 70.0])
    assert set(kept.t_act("A")) == {1.0}
    assert chosen("top", Selection(kept, "A", count=2)) == [(2, 3)]
    assert chosen("top", Selection(kept, "A", count=0)) == [()]
    assert chosen("top", Selection(kept, "A", count=4)) == [(0, 1, 2, 3)]


def test_ties_go_to_the_first_channels() -> None:
    assert chosen("top", Selection(statistics(difference_squared=[1.0] * 5), "A", count=2)) == [(0, 1)]


def test_variances_against_numpy() -> None:
    rng = np.random.default_rng(0)
    clean, adversarial = rng.normal(3, rng.uniform(0, 2, (1, 9, 1)), (2, 20, 9, 1))
    images = [torch.tensor(x)[..., None] for x in (clean, adversarial)]
    batch = AdversarialBatch(0, torch.zeros(20), dict(zip(("clean", "a"), images, strict=True)))
    kept = ChannelActivations(nodes=("0",), attack="a").measure(nn.Sequential(nn.Identity()), [batch])
    for name, values in (("variance", adversarial), ("variance-clean", clean)):
        (mask,) = select(name, Selection(kept, "0", count=4))
        assert mask.channels["0"] == tuple(sorted(np.argsort(values.var((0, 2)))[-4:].tolist()))


def test_random_masks_are_seeded_and_differ() -> None:
    selection = Selection(of_t_act(*[0.1] * 64), "A", count=6, seed=1)
    drawn = chosen("random", selection)
    assert len(drawn) == 5 and len(set(drawn)) == 5
    assert all(len(set(draw)) == 6 and max(draw) < 64 for draw in drawn)
    assert chosen("random", selection) == drawn
    assert chosen("random", replace(selection, seed=2)) != drawn
    assert [mask.draw for mask in select("random", selection)] == [0, 1, 2, 3, 4]


def test_random_masks_reach_every_channel_alike() -> None:
    selection = Selection(of_t_act(*[0.1] * 10), "A", count=5, draws=400)
    share = np.bincount(np.concatenate(chosen("random", selection)), minlength=10) / 400
    np.testing.assert_allclose(share, 0.5, atol=0.1)  # 4 standard deviations


@pytest.mark.parametrize(
    ("percent", "channels", "count"),
    [(1, 64, 1), (3, 64, 2), (10, 64, 6), (20, 64, 13), (100, 64, 64), (0.001, 16, 1), (50, 1, 1)],
)
def test_count_of_percent(percent: float, channels: int, count: int) -> None:
    assert count_of_percent(percent, channels) == count


@pytest.mark.parametrize("percent", [0, -1, 100.1, float("nan")])
def test_shares_outside_0_to_100_are_refused(percent: float) -> None:
    with pytest.raises(InputError, match="above 0 and at most 100"):
        count_of_percent(percent, 64)


def test_selection_checks_its_numbers() -> None:
    kept = of_t_act(0.1, 0.2)
    for alpha2 in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="alpha2"):
            Selection(kept, "A", alpha2=alpha2)
    with pytest.raises(InputError, match="can't mask 3 channels of node A, which has 2"):
        Selection(kept, "A", count=3)
    with pytest.raises(InputError, match="unknown selector 'varience'; did you mean variance"):
        select("varience", Selection(kept, "A"))


def test_every_selector_says_what_it_is() -> None:
    assert set(SELECTORS) >= {"t-act", "top", "variance", "variance-clean", "random", "attribution", "conductance"}
    for entry in SELECTORS.entries():
        assert entry.summary and entry.source
        assert isinstance(entry.facts["sized"], bool)


class Carrier(nn.Module):
    """A network in which channel 2 alone moves the logits; channel 4 is larger but nothing reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.same = same_channels(6)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.read = nn.Linear(6, 3, bias=False)
        self.scale = nn.Parameter(torch.tensor([0.5, 1.0, 1.0, 2.0, 50.0, 0.0]))
        self.read.weight.data.zero_()
        self.read.weight.data[1, 2] = 3.0
        self.node_table = {"A": "relu"}

    def forward(self, x: Tensor) -> Tensor:
        channels = self.relu(self.same(x.mean(1, keepdim=True) * self.scale.view(1, -1, 1, 1)))
        return self.read(self.pool(channels).flatten(1))


def images(count: int, start: int = 0) -> AdversarialBatch:
    x = torch.rand(count, 3, 4, 5, generator=torch.Generator().manual_seed(start))
    return AdversarialBatch(start, torch.zeros(count, dtype=torch.int64), {"clean": x, "a": x})


METHODS = {"attribution": "gradient-x-activation", "conductance": "conductance"}
BATCHES = [images(3), images(2, 3)]


def carried(model: nn.Module, *methods: str) -> Selection:
    """Everything about node A, and its attributions."""
    statistics = ChannelActivations(nodes=("A", "A:4"), attack="a").measure(model, BATCHES)
    attributions = {name: Attribution(node="A", attack="a", method=name).measure(model, BATCHES) for name in methods}
    return Selection(statistics, "A", count=1, attributions=attributions)


@pytest.fixture
def carrier() -> Selection:
    return carried(Carrier().train())


@CAPTUM
@pytest.mark.parametrize("node", ["A", "pool:in", "#relu1"])
def test_attribution_finds_the_channel_that_carries_the_class(name: str, node: str) -> None:
    model, method = Carrier().train(), METHODS[name]
    statistics = ChannelActivations(nodes=(node,), attack="a").measure(model, BATCHES)
    scores = Attribution(node=node, attack="a", method=method).measure(model, BATCHES)
    (mask,) = select(name, Selection(statistics, node, count=1, attributions={method: scores}))
    assert mask.channels == {node: (2,)}


def test_attribution_is_gradient_times_activation() -> None:
    model = Carrier().train()
    model.read.weight.data = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(6, dtype=torch.float64)
    for batch in BATCHES:
        x = batch.images["a"]
        activation = (x.mean(1, keepdim=True) * model.scale.detach().view(1, -1, 1, 1)).relu().mean((2, 3))
        winner = (activation @ model.read.weight.detach().T).argmax(1)
        total += (activation * model.read.weight.detach()[winner]).abs().double().sum(0)
    selection = carried(model, "gradient-x-activation")
    found = selection.attributions["gradient-x-activation"]
    assert found["attribution"].to_numpy() == pytest.approx(total.numpy(), rel=1e-5)
    expected = tuple(sorted(total.argsort(descending=True)[:3].tolist()))
    assert chosen("attribution", replace(selection, count=3)) == [expected]


def state(model: nn.Module) -> tuple[object, ...]:
    return (
        {name: value.numpy().tobytes() for name, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [(p.requires_grad, p.grad) for p in model.parameters()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
    )


@CAPTUM
@pytest.mark.filterwarnings("error")
def test_captum_leaves_model_and_images_as_they_were(name: str) -> None:
    model, metric = Carrier().train(), Attribution(node="A", attack="a", method=METHODS[name])
    model.scale.requires_grad_(False)
    before, pictures = state(model), [batch.images["a"].clone() for batch in BATCHES]
    metric.measure(model, BATCHES)
    assert state(model) == before
    for batch, picture in zip(BATCHES, pictures, strict=True):
        assert torch.equal(batch.images["a"], picture) and not batch.images["a"].requires_grad

    def fail(*_: object) -> None:
        raise KeyError("stop")

    handle = model.read.register_forward_hook(fail)
    with pytest.raises(KeyError, match="stop"):
        metric.measure(model, BATCHES)
    handle.remove()
    assert state(model) == before
    assert not any(batch.images["a"].requires_grad for batch in BATCHES)


class Written(torch.autograd.Function):
    """A ReLU with a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = F.relu(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * (ctx.saved_tensors[0] > 0)


class Around(nn.Module):
    """An activation module that calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Identity()  # without it, its calls were those of the module around

    def forward(self, x: Tensor) -> Tensor:
        return Written.apply(self.child(x))


def custom(detached: bool = False) -> Carrier:
    network = Carrier().eval()
    network.relu = Around()
    network.relu.register_forward_hook(lambda module, inputs, output: output.detach() if detached else output)
    network.node_table = {}
    return network


@CAPTUM
@pytest.mark.parametrize(("node", "is_in"), [("relu#relu1", False), ("relu", True), ("same", True), ("pool", True)])
def test_a_selector_that_can_not_be_computed_at_a_node_is_left_out(name: str, node: str, is_in: bool) -> None:
    said: list[str] = []
    found = computable(["variance", name], custom(), node, images(1).images["a"], said.append)
    assert found == (("variance", name) if is_in else ("variance",)) and bool(said) != is_in
    if not is_in:
        assert said == [
            f"masks by {name} are left out: the logits have no gradient at node 'relu#relu1', which lies in a "
            "torch.autograd.Function or before a detach(); name the module around it"
        ]


def test_a_selector_that_can_not_be_computed_before_a_detach(carrier: Selection) -> None:
    said: list[str] = []
    compare = ["attribution", "random", "conductance"]
    assert computable(compare, custom(detached=True), "relu.child", images(1).images["a"], said.append) == ("random",)
    assert said[0].startswith("masks by attribution and conductance are left out")
    with pytest.raises(InputError, match="unknown selector 'varience'"):
        computable(["varience"], Carrier(), "A", images(1).images["a"], said.append)


def test_masks_inside_a_custom_function_and_around_it_are_the_same() -> None:
    dataset, said = grey(12, side=4), []
    frames = []
    for node in ("relu#relu1", "relu"):
        probe = Probe(checkpoint(Wide(custom())), dataset, EPSILON, say=said.append)
        assert [(p.path, p.shape) for p in places(probe.stored_model, (3, 4, 4))] == [("inner.relu#relu1", (6, 4, 4))]
        masking = probe.mask(f"inner.{node}", percent=40, attacks=("fgsm",))
        frame = masking.evaluation.frame
        frames.append(frame[frame["mask"] != "attribution"].reset_index(drop=True))
        assert ("attribution" in set(frame["mask"])) == (node == "relu") and len(said) == 1
    pd.testing.assert_frame_equal(*frames)


class Wide(nn.Module):
    """Ten classes out of the three of the network inside."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(self.inner(x), (0, 7))


def test_a_single_channel_has_no_others_to_choose_from(carrier: Selection) -> None:
    with pytest.raises(InputError, match="node 'A:4' is a single channel; there are no others to choose from"):
        replace(carrier, node="A:4")


def test_a_given_channel_is_masked_beside_as_many_others(carrier: Selection) -> None:
    masks = compared_masks(carrier, (), None, ("variance", "random"), 2)
    assert [mask.channels["A"] for mask in masks[:2]] == [(2,), (4,)] and masks[0].reason == "channel 2"
    assert [mask.reason for mask in masks[1:]] == ["variance"] + ["random"] * 5
    assert {mask.count for mask in masks} == {1}


@CAPTUM
def test_attribution_is_asked_for_where_it_is_needed(carrier: Selection, name: str) -> None:
    assert attributions_for(["random", name, name, "variance"]) == [METHODS[name]]
    with pytest.raises(InputError, match=f"needs the attribution by {METHODS[name]} at node A"):
        select(name, carrier)
    with pytest.raises(InputError, match="unknown attribution 'gradient'; did you mean gradient-x-activation"):
        Attribution(method="gradient")
    with pytest.raises(InputError, match="no images to attribute"):
        Attribution(attack="a").measure(Carrier(), [])


def test_a_mask_is_gone_after_the_block_and_after_an_exception() -> None:
    model = Carrier().train()
    x, before = images(4).images["a"], state(model)
    mask = ChannelMask({"A": (2,)})
    whole = model(x)
    with mask.applied(model):
        assert not model(x).any()
    assert torch.equal(model(x), whole)
    with pytest.raises(ZeroDivisionError), mask.applied(model):
        raise ZeroDivisionError
    assert torch.equal(model(x), whole) and state(model) == before


def test_counts_and_reasons() -> None:
    assert (NO_MASK.count, NO_MASK.reason) == (0, "none")
    assert ChannelMask({"A": (1, 2), "B": (0,)}).count == 3
    (mask,) = select("top", Selection(of_t_act(0.1, 0.2), "A", count=1), reason="top 50 %")
    assert (mask.reason, mask.draw, mask.channels) == ("top 50 %", 0, {"A": (1,)})
