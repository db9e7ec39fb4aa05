"""Wide ResNet for small images: three stages of wide pre-activated blocks (Zagoruyko, Komodakis, BMVC 2016).

Weights are named as in the public adversarial-training repositories (`block1.layer.0.convShortcut`, `fc`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from coprobe.models.catalog import ARCHITECTURES, Architecture, Network, Shaped
from coprobe.models.layers import ACTIVATIONS, activation_function, conv1x1, conv3x3

STEM_CHANNELS = 16  # whatever the width


class WideBlock(nn.Module):
    """Twice batch norm, ReLU and a 3×3 convolution; the shortcut convolves where the channels change."""

    def __init__(self, in_channels: int, planes: int, stride: int, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = activation()
        self.conv1 = conv3x3(in_channels, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = activation()
        self.conv2 = conv3x3(planes, planes)
        self.convShortcut = conv1x1(in_channels, planes, stride) if in_channels != planes else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features N×in_channels×H×W to N×planes×(H/stride)×(W/stride)."""
        activated = self.relu1(self.bn1(x))
        out: torch.Tensor = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        if self.convShortcut is None:
            return out + x
        projected: torch.Tensor = self.convShortcut(activated)
        return out + projected


class WideResNet(Network):
    """A stem of 16 channels and three stages with 1, 2 and 4 times `width` channels, strides 1, 2, 2.

    A stage's result is first rectified by whatever reads it, and the nodes are there: A, B and C at `relu1`
    of the first block of block1…block3, E at the final `relu`. Three stages give only these four such places,
    so D is `relu1` of block3's middle block.

    Args:
        depth: the number of convolutions and the classifier, 6·n + 4 for n blocks per stage.
        width: channels of the first stage, 16 times the widen factor (160 for the "-10" of WRN-34-10).
        num_classes: the number of logits.
        in_channels: the number of image channels.
        activation: the activation functions, one of `ACTIVATIONS`.

    Raises:
        InputError: an unknown activation.
    """

    min_image_size = 4

    def __init__(
        self, depth: int, *, width: int = 160, num_classes: int = 10, in_channels: int = 3, activation: str = "relu"
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.activation = activation_function(activation)
        blocks = (depth - 4) // 6
        self.conv1 = conv3x3(in_channels, STEM_CHANNELS)
        self.block1 = _stage(blocks, STEM_CHANNELS, width, stride=1, activation=self.activation)
        self.block2 = _stage(blocks, width, 2 * width, stride=2, activation=self.activation)
        self.block3 = _stage(blocks, 2 * width, 4 * width, stride=2, activation=self.activation)
        self.bn1 = nn.BatchNorm2d(4 * width)
        self.relu = self.activation()
        self.fc = nn.Linear(4 * width, num_classes)
        self.node_table = {
            "A": "block1.layer.0.relu1",
            "B": "block2.layer.0.relu1",
            "C": "block3.layer.0.relu1",
            "D": f"block3.layer.{blocks // 2}.relu1",
            "E": "relu",
        }
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images N×C×H×W to logits N×classes."""
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        out = self.relu(self.bn1(out))
        logits: torch.Tensor = self.fc(out.mean((2, 3)))
        return logits


def _stage(blocks: int, in_channels: int, planes: int, stride: int, activation: type[nn.Module]) -> nn.Sequential:
    first = WideBlock(in_channels, planes, stride, activation)
    layer = nn.Sequential(first, *(WideBlock(planes, planes, 1, activation) for _ in range(blocks - 1)))
    return nn.Sequential(OrderedDict(layer=layer))


def _read_args(state_dict: Mapping[str, Shaped]) -> dict[str, Any]:
    return {
        "width": state_dict["block1.layer.0.conv1.weight"].shape[0],
        "num_classes": state_dict["fc.weight"].shape[0],
        "in_channels": state_dict["conv1.weight"].shape[1],
    }


for _depth in (34, 28):
    ARCHITECTURES.add(
        f"wrn-{_depth}-10",
        Architecture(partial(WideResNet, _depth), _read_args, {"activation": tuple(ACTIVATIONS)}),
        summary=f"Wide ResNet of depth {_depth}, ten times as wide as its 16-channel stem",
        source="Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016, arXiv:1605.07146",
    )
