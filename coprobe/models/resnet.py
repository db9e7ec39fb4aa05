"""ResNet for small images: a 3×3 stem, four stages (He et al., CVPR 2016, arXiv:1512.03385).

Weights are named as in the public CIFAR repositories (`conv1`, `layer1.0.shortcut.0`, `linear`), so their files load
unchanged. Most of them neither stride nor pool in the stem, and use ReLU; those that do otherwise have the same names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from coprobe.errors import unknown
from coprobe.models.catalog import ARCHITECTURES, Architecture, Network, Shaped
from coprobe.models.layers import ACTIVATIONS, activation_function, conv1x1, conv3x3, projection

#: What the stem does to the image's size: nothing, max pooling after it (as torchvision's), stride 2, or both.
STEMS = ("plain", "pooled", "strided", "strided-pooled")


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return projection(in_channels, out_channels, stride)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    expansion: ClassVar[int] = 1
    last_relu: ClassVar[str] = "relu2"

    def __init__(self, in_channels: int, planes: int, stride: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = activation()
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = _shortcut(in_channels, planes, stride)
        self.relu2 = activation()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features N×in_channels×H×W to N×planes×(H/stride)×(W/stride)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        result: torch.Tensor = self.relu2(out + self.shortcut(x))
        return result


class Bottleneck(nn.Module):
    """A 3×3 convolution between two 1×1 ones, the last four times as wide, and a shortcut."""

    expansion: ClassVar[int] = 4
    last_relu: ClassVar[str] = "relu3"

    def __init__(self, in_channels: int, planes: int, stride: int, activation: type[nn.Module]) -> None:
        super().__init__()
        out_channels = self.expansion * planes
        self.conv1 = conv1x1(in_channels, planes)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = activation()
        self.conv2 = conv3x3(planes, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = activation()
        self.conv3 = conv1x1(planes, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride)
        self.relu3 = activation()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features N×in_channels×H×W to N×4·planes×(H/stride)×(W/stride)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        result: torch.Tensor = self.relu3(out + self.shortcut(x))
        return result


class ResNet(Network):
    """A stem and four stages with 1, 2, 4 and 8 times `width` planes, the last three at stride 2.

    Node A follows the stem's ReLU, B…E the last ReLU of layer1…layer4.

    Args:
        block: the kind of residual block.
        depths: the number of blocks in each of the four stages.
        width: channels of the stem and planes of the first stage.
        num_classes: the number of logits.
        in_channels: the number of image channels.
        stem: what the stem does to the image's size, one of `STEMS`.
        activation: the activation functions, one of `ACTIVATIONS`.

    Raises:
        InputError: an unknown stem or activation.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        *,
        width: int = 64,
        num_classes: int = 10,
        in_channels: int = 3,
        stem: str = "plain",
        activation: str = "relu",
    ) -> None:
        if stem not in STEMS:
            raise unknown("stem", stem, STEMS)
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.activation = activation_function(activation)
        strided, pooled = stem.startswith("strided"), stem.endswith("pooled")
        self.min_image_size = 8 * (1 + strided) * (1 + pooled)
        self.conv1 = conv3x3(in_channels, width, stride=1 + strided)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = self.activation()
        self.pool = nn.MaxPool2d(3, 2, 1) if pooled else None
        out_channels = [block.expansion * width * 2**i for i in range(4)]
        self.layer1 = _stage(block, self.activation, depths[0], width, width, stride=1)
        self.layer2 = _stage(block, self.activation, depths[1], out_channels[0], 2 * width, stride=2)
        self.layer3 = _stage(block, self.activation, depths[2], out_channels[1], 4 * width, stride=2)
        self.layer4 = _stage(block, self.activation, depths[3], out_channels[2], 8 * width, stride=2)
        self.linear = nn.Linear(out_channels[3], num_classes)
        self.node_table = {"A": "relu"} | {
            node: f"layer{number}.{depth - 1}.{block.last_relu}"
            for number, (node, depth) in enumerate(zip("BCDE", depths, strict=True), start=1)
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images N×C×H×W to logits N×classes."""
        out = self.relu(self.bn1(self.conv1(x)))
        if self.pool is not None:
            out = self.pool(out)
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        logits: torch.Tensor = self.linear(out.mean((2, 3)))
        return logits


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    activation: type[nn.Module],
    depth: int,
    in_channels: int,
    planes: int,
    stride: int,
) -> nn.Sequential:
    first = block(in_channels, planes, stride, activation)
    return nn.Sequential(first, *(block(block.expansion * planes, planes, 1, activation) for _ in range(depth - 1)))


def _read_args(state_dict: Mapping[str, Shaped]) -> dict[str, Any]:
    stem = state_dict["conv1.weight"].shape
    return {"width": stem[0], "num_classes": state_dict["linear.weight"].shape[0], "in_channels": stem[1]}


for _number, _block, _depths in (
    (18, BasicBlock, (2, 2, 2, 2)),
    (34, BasicBlock, (3, 4, 6, 3)),
    (50, Bottleneck, (3, 4, 6, 3)),
):
    ARCHITECTURES.add(
        f"resnet{_number}",
        Architecture(partial(ResNet, _block, _depths), _read_args, {"stem": STEMS, "activation": tuple(ACTIVATIONS)}),
        summary=f"ResNet-{_number} for small images (3×3 stem, no pooling after it)",
        source="He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv:1512.03385",
    )
