"""The layout is channels-last, but where a kernel or a network can't bear it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _len_torch_function_stack

from coprobe.fast.classifier import FastClassifier, fast
from coprobe.fast.form import Form
from coprobe.fast.layout import layout_of
from coprobe.probe import Probe
from tests.fast.networks import assert_same, classifier, images, norms, pair, refuse
from tests.toys import EPSILON, checkpoint, grey


def strided(channels: int, kernel: int, groups: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, channels, 3), nn.Conv2d(channels, 8, kernel, stride=2, groups=groups))


@pytest.mark.parametrize(
    ("network", "layout"),
    [
        (strided(8, 1), torch.channels_last),
        (strided(7, 1), torch.contiguous_format),
        (strided(8, 1, groups=2), torch.contiguous_format),
        (strided(4, 3), torch.channels_last),
    ],
)
def test_a_layout_that_no_kernel_writes_beyond(network: nn.Module, layout: torch.memory_format) -> None:
    assert layout_of(network) == layout
    network.to(memory_format=layout)
    for _ in range(20):
        x = torch.rand(32, 3, 34, 34).to(memory_format=layout).requires_grad_()
        (gradient,) = torch.autograd.grad(network(x).square().sum(), x)
    with torch.backends.mkldnn.flags(enabled=False):
        (expected,) = torch.autograd.grad(network(x).square().sum(), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


VIEWS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.view(x.size(0), -1),
    lambda x: x.view((len(x), 128)),
    lambda x: x.view(size=(len(x), 128)),
    lambda x: x.view_as(torch.empty(len(x), 128)),
    lambda x: x.view(-1, 2, 64).view(torch.int32).view(torch.float32).flatten(1),
]


class LeNet(nn.Module):
    """Flattens with `view`, which a channels-last tensor refuses."""

    def __init__(self, flatten: Callable[[Tensor], Tensor] = VIEWS[0]) -> None:
        super().__init__()
        self.flatten = flatten
        self.body, self.head = nn.Sequential(*pair(3, 8), nn.ReLU(), nn.MaxPool2d(4)), nn.Linear(8 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head(self.flatten(x))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("form", [Form(), Form(winograd=4, packed=True)])
def test_a_network_that_counts_on_views_has_its_whole_fast_form(view: Callable[[Tensor], Tensor], form: Form) -> None:
    model, x = classifier(LeNet(view)), images()
    made = fast(model, images=x, nodes=["body.2"], form=form, say=refuse)
    assert isinstance(made, FastClassifier) and made.form == form and norms(made) == []
    assert_same(model, made, x, ["body.2"])
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        made.network(x.contiguous(memory_format=torch.channels_last))
    assert _len_torch_function_stack() == 0


class Strict(LeNet):
    """Takes nothing but torch's default layout, and says so in its own way."""

    def __init__(self) -> None:
        super().__init__(self.checked)
        self.head = nn.Linear(8 * 4 * 4, 10)

    @staticmethod
    def checked(x: Tensor) -> Tensor:
        if not x.is_contiguous():
            raise ValueError("contiguous, please")
        return x.flatten(1)


def test_a_network_that_cannot_run_channels_last_keeps_the_rest_of_its_fast_form() -> None:
    said: list[str] = []
    network = Strict()
    model, x = classifier(network), images()
    made = fast(model, images=x, nodes=["body.2"], say=said.append)
    assert isinstance(made, FastClassifier) and made.form.fold and not made.form.channels_last
    assert norms(made) == []
    assert_same(model, made, x, ["body.2"])
    sentence = (
        "images and activations don't lie channels-last, in which convolutions are faster: ValueError: contiguous, "
        "please"
    )
    assert said == [sentence]
    said.clear()
    probe = Probe(checkpoint(network.eval()), grey(4, side=16), EPSILON, say=said.append)
    probe.evaluate(("fgsm",))
    probe.activations(["body.2"], "fgsm")
    assert [text for text in said if "channels-last" in text] == [sentence]
