"""ResNet-18 with pre-activated blocks, for small images (He et al., ECCV 2016, arXiv:1603.05027).

Public repositories share the names of the weights but not the network: some give the shortcut's convolution
the pre-activated features and others the block's raw input, and only some end in batch norm and ReLU. The
second can be read off a file, the first can't.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from coprobe.errors import unknown
from coprobe.models.catalog import ARCHITECTURES, Architecture, Network, Shaped
from coprobe.models.layers import ACTIVATIONS, activation_function, conv1x1, conv3x3

SHORTCUTS = ("preactivated", "raw")


class PreActBlock(nn.Module):
    """Twice batch norm, ReLU and a 3×3 convolution, and a shortcut.

    Args:
        in_channels: channels of the input.
        planes: channels of the output.
        stride: of the first convolution and of the shortcut's.
        shortcut: what the shortcut's convolution reads, one of `SHORTCUTS`; where there is no convolution,
            the shortcut is always the raw input.
        activation: the class of the activation functions.
    """

    def __init__(
        self, in_channels: int, planes: int, stride: int, shortcut: str, activation: type[nn.Module] = nn.ReLU
    ) -> None:
        super().__init__()
        self.raw_shortcut = shortcut == "raw"
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = activation()
        self.conv1 = conv3x3(in_channels, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = activation()
        self.conv2 = conv3x3(planes, planes)
        projects = stride != 1 or in_channels != planes
        self.shortcut = nn.Sequential(conv1x1(in_channels, planes, stride)) if projects else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features N×in_channels×H×W to N×planes×(H/stride)×(W/stride)."""
        activated = self.relu1(self.bn1(x))
        out: torch.Tensor = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        if self.shortcut is None:
            return out + x
        projected: torch.Tensor = self.shortcut(x if self.raw_shortcut else activated)
        return out + projected


class PreActResNet(Network):
    """A stem and four stages of two blocks, with 1, 2, 4 and 8 times `width` channels, strides 1, 2, 2, 2.

    A stage's result is first rectified by whatever reads it, and the nodes are there: A…D at `relu1` of the
    first block of layer1…layer4, E at the final `relu`, or, without the final batch norm, at the last ReLU of
    all, `layer4.1.relu2`, which does not see the last block's result.

    Args:
        width: channels of the stem and of the first stage.
        num_classes: the number of logits.
        in_channels: the number of image channels.
        shortcut: what the shortcuts' convolutions read, "preactivated" or "raw".
        final_bn: whether batch norm and ReLU stand between the last block and the pooling.
        activation: the activation functions, one of `ACTIVATIONS`.

    Raises:
        InputError: an unknown shortcut or activation.
    """

    min_image_size = 8

    def __init__(
        self,
        *,
        width: int = 64,
        num_classes: int = 10,
        in_channels: int = 3,
        shortcut: str = "preactivated",
        final_bn: bool = True,
        activation: str = "relu",
    ) -> None:
        if shortcut not in SHORTCUTS:
            raise unknown("shortcut", shortcut, SHORTCUTS)
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.activation = activation_function(activation)
        self.conv1 = conv3x3(in_channels, width)
        self.layer1 = _stage(width, width, 1, shortcut, self.activation)
        self.layer2 = _stage(width, 2 * width, 2, shortcut, self.activation)
        self.layer3 = _stage(2 * width, 4 * width, 2, shortcut, self.activation)
        self.layer4 = _stage(4 * width, 8 * width, 2, shortcut, self.activation)
        self.final_bn = final_bn
        if final_bn:
            self.bn = nn.BatchNorm2d(8 * width)
            self.relu = self.activation()
        self.linear = nn.Linear(8 * width, num_classes)
        self.node_table = {node: f"layer{number}.0.relu1" for number, node in enumerate("ABCD", start=1)}
        self.node_table["E"] = "relu" if final_bn else "layer4.1.relu2"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images N×C×H×W to logits N×classes."""
        out = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        if self.final_bn:
            out = self.relu(self.bn(out))
        logits: torch.Tensor = self.linear(out.mean((2, 3)))
        return logits


def _stage(in_channels: int, planes: int, stride: int, shortcut: str, activation: type[nn.Module]) -> nn.Sequential:
    first = PreActBlock(in_channels, planes, stride, shortcut, activation)
    return nn.Sequential(first, PreActBlock(planes, planes, 1, shortcut, activation))


def _read_args(state_dict: Mapping[str, Shaped]) -> dict[str, Any]:
    stem = state_dict["conv1.weight"].shape
    return {
        "width": stem[0],
        "num_classes": state_dict["linear.weight"].shape[0],
        "in_channels": stem[1],
        "final_bn": "bn.weight" in state_dict,
    }


ARCHITECTURES.add(
    "preact-resnet18",
    Architecture(PreActResNet, _read_args, {"shortcut": SHORTCUTS, "activation": tuple(ACTIVATIONS)}),
    summary="ResNet-18 with batch norm and ReLU before each convolution, for small images",
    source="He et al., Identity Mappings in Deep Residual Networks, ECCV 2016, arXiv:1603.05027",
)
