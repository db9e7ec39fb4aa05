"""The layout is channels-last, but where a kernel or a network can't bear it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from coprobe.fast.classifier import FastClassifier, fast
from coprobe.fast.layout import layout_of
from tests.fast.networks import assert_same, classifier, images, norms, pair, refuse


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


class LeNet(nn.Module):
    """Flattens with `view`, which a channels-last tensor refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(*pair(3, 8), nn.ReLU(), nn.MaxPool2d(4)), nn.Linear(8 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head(x.view(x.size(0), -1))


def test_a_network_that_cannot_run_channels_last_keeps_the_rest_of_its_fast_form() -> None:
    model, x = classifier(LeNet()), images()
    made = fast(model, images=x, nodes=["body.2"], say=refuse)
    assert isinstance(made, FastClassifier) and made.form.fold and not made.form.channels_last
    assert norms(made) == []
    assert_same(model, made, x, ["body.2"])
