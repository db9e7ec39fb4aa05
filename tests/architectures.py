"""Narrow networks of the registered architectures, with images that fall one after the other under attack."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from coprobe.data import Dataset
from coprobe.fast.classifier import fast
from coprobe.fast.form import Form
from coprobe.fast.winograd import Winograd
from coprobe.models import Classifier, build

CLASSES = 4
#: By architecture: its width, the side of its images, and a step (255ths) at which they fall one after the other.
NETWORKS: dict[str, tuple[int, int, float]] = {
    "resnet18": (4, 32, 2),
    "preact-resnet18": (4, 16, 0.5),
    "wrn-28-10": (8, 16, 0.5),
    "vgg11": (4, 32, 0.125),
}
IMAGES = 70


@lru_cache
def subject(arch: str, form: str) -> tuple[Classifier, Dataset]:
    """A network of random weights whose batch norm is that of trained ones, and images, most of which it gets right."""
    torch.manual_seed(0)
    width, side, _ = NETWORKS[arch]
    network = build(arch, num_classes=CLASSES, width=width)
    images = torch.randint(0, 256, (IMAGES, 3, side, side), dtype=torch.uint8)
    x = images / 255
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5), norm.bias.uniform_(-0.3, 0.3)
            norm.momentum = None  # statistics of these images
        network.train()(x)
        head.bias -= network.eval()(x).mean(0)  # no favourite class
    model = Classifier(network, [0.5] * 3, [0.25] * 3).eval()
    with torch.no_grad():
        labels = model(x).argmax(1)
    labels[::9] = (labels[::9] + 1) % CLASSES  # these are done before they begin
    data = Dataset(images, labels, tuple("abcd"), "random", "test")
    if form == "fast":
        # so that these narrow networks have both kinds of convolutions
        model = fast(model, images=x[:8], form=Form(winograd=16))
        assert any(isinstance(module, Winograd) for module in model.modules())
    return model, data
