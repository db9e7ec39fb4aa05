"""`coprobe.mask`, a block in which channels of any module are zero, against a network with the zeros written in."""

from __future__ import annotations

from threading import Thread, current_thread
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import coprobe
from coprobe.errors import InputError
from coprobe.nodes import ChannelMask
from tests.attacks.small import fingerprint


class Net(nn.Module):
    """Two layers; `zeros` are channels set to zero by hand: of the first layer, and behind the second one's ReLU."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer1 = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.layer2 = nn.Conv2d(8, 5, 3)
        self.zeros: tuple[list[int], list[int]] = [], []

    def forward(self, x: Tensor) -> Tensor:
        first, second = (torch.ones(n) for n in (8, 5))
        first[self.zeros[0]], second[self.zeros[1]] = 0, 0
        x = self.layer1[0](x) * first.view(1, -1, 1, 1)
        return F.relu(self.layer2(self.layer1[1](x))).mul(second.view(1, -1, 1, 1)).mean((2, 3))


def by_hand(first: list[int], second: list[int]) -> Net:
    net = Net().eval()
    net.zeros = first, second
    return net


IMAGES = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def test_channels_are_zero_in_the_block_and_only_there() -> None:
    model, whole = Net().eval(), Net().eval()(IMAGES)
    before = fingerprint(model)
    with coprobe.mask(model, {"layer1.0": [3, 7], "#relu1": 2}):
        assert torch.equal(model(IMAGES), by_hand([3, 7], [2])(IMAGES))
        with coprobe.mask(model, ChannelMask({"layer1.0": (0,)})):
            assert torch.equal(model(IMAGES), by_hand([0, 3, 7], [2])(IMAGES))
        assert torch.equal(model(IMAGES), by_hand([3, 7], [2])(IMAGES))
    assert torch.equal(model(IMAGES), whole) and fingerprint(model) == before


def test_a_step_of_training_in_the_block_is_that_of_the_network_by_hand() -> None:
    model, expected = Net().train(), by_hand([3], [1]).train()
    with coprobe.mask(model, {"layer1.0": [3], "#relu1": [1]}):
        for net in (model, expected):
            net(IMAGES).square().sum().backward()
    assert model.training and model.layer1[1].training
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        assert ours.requires_grad and torch.equal(ours.grad, theirs.grad)
    assert torch.equal(model.layer1[1].running_var, expected.layer1[1].running_var)


@pytest.mark.parametrize(
    "given", [torch.tensor([3, 7]), np.array([3, 7]), [torch.tensor(3), np.int64(7)], (3, 7), {3, 7}, range(3, 8, 4)]
)
def test_numbers_come_in_any_form(given: Any) -> None:
    model = Net().eval()
    with coprobe.mask(model, {"layer1.0": given, "#relu1": np.int64(2)}):
        assert torch.equal(model(IMAGES), by_hand([3, 7], [2])(IMAGES))


@pytest.mark.parametrize(
    ("channels", "said"),
    [
        ({"layer1.0": torch.tensor([False] * 7 + [True])}, "channels of 'layer1.0': give their whole numbers, as in"),
        ({"layer1.0": np.array([True] * 8)}, "channels of 'layer1.0': give their whole numbers"),
        ({"layer1.0": [3.0]}, "channels of 'layer1.0': give their whole numbers"),
        ({"layer1.0": True}, "channels of 'layer1.0': give their whole numbers"),
        ({"layer1.0": "3"}, "channels of 'layer1.0': give their whole numbers"),
        ({"layer1.0": slice(3)}, "channels of 'layer1.0': give their whole numbers"),
        ({"layer1.0": [3, 8]}, "node 'layer1.0' has channels 0 to 7, not 8"),
        ({"layer1.9": [0]}, "unknown node 'layer1.9'; did you mean layer1.1 or layer1.0"),
        ({"#relu2": 0}, "node '#relu2': no pass comes by it"),
    ],
)
def test_what_can_not_be_masked_is_said_and_leaves_nothing(channels: dict[str, Any], said: str) -> None:
    model = Net().eval()
    before = fingerprint(model)
    with pytest.raises(InputError) as error, coprobe.mask(model, channels):
        model(IMAGES)
    assert str(error.value).startswith(said) and fingerprint(model) == before
    with pytest.raises(KeyError), coprobe.mask(model, {"layer1.0": 1, "#relu1": 2}):
        model(IMAGES)
        raise KeyError
    assert fingerprint(model) == before


@pytest.mark.parametrize("node", ["layer1.0", "#relu1"])
def test_another_thread_is_refused_and_the_first_one_goes_on(node: str) -> None:
    model, said = Net().eval(), []

    def run() -> None:
        try:
            model(IMAGES)
        except InputError as error:
            said.append(str(error))

    thread = Thread(target=run, name="second")
    # in the midst of a pass of the first thread
    handle = model.layer2.register_forward_pre_hook(
        lambda *_: None if current_thread() is thread or thread.ident else (thread.start(), thread.join(), None)[2]
    )
    with coprobe.mask(model, {node: [1]}):
        masked = model(IMAGES)
    handle.remove()
    assert torch.equal(masked, by_hand([1], [])(IMAGES) if node == "layer1.0" else by_hand([], [1])(IMAGES))
    assert said == [
        f"this network is recorded or masked by thread '{current_thread().name}', and meanwhile thread 'second' runs "
        "it; give each thread a copy.deepcopy of it"
    ]
    run()
    assert len(said) == 1
