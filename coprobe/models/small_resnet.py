"""ResNet for CIFAR with three thin stages, 6·n + 2 layers deep (He et al., CVPR 2016, arXiv:1512.03385, section 4.2).

Weights are named as in the public repositories (`conv1`, `layer3.8.conv2`, `linear`), so their files load unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from coprobe.errors import unknown
from coprobe.models.catalog import ARCHITECTURES, Architecture, Network, Shaped
from coprobe.models.layers import ACTIVATIONS, activation_function, conv3x3, projection

SHORTCUTS = ("padded", "projected")


class PaddedShortcut(nn.Module):
    """Every second row and column, and channels of zeros on both sides (option A); no weights.

    Args:
        added: how many channels of zeros; of an odd number, the last side has one more.
    """

    def __init__(self, added: int) -> None:
        super().__init__()
        self.before = added // 2
        self.after = added - self.before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features N×C×H×W to N×(C + added)×⌈H/2⌉×⌈W/2⌉."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class SmallBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, which pads or projects where the channels change."""

    def __init__(self, in_channels: int, planes: int, stride: int, shortcut: str, activation: type[nn.Module]) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = activation()
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1:
            padded = shortcut == "padded"
            self.shortcut = PaddedShortcut(planes - in_channels) if padded else projection(in_channels, planes, stride)
        self.relu2 = activation()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features N×in_channels×H×W to N×planes×(H/stride)×(W/stride)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        result: torch.Tensor = self.relu2(out + self.shortcut(x))
        return result


class SmallResNet(Network):
    """A stem and three stages of `blocks` blocks with 1, 2 and 4 times `width` channels, strides 1, 2, 2.

    Node A follows the stem's ReLU, B, C and E the last ReLU of layer1…layer3. Three stages give only these four
    such places, so D is the last ReLU of layer3's middle block.

    Args:
        blocks: the number of blocks in each stage, at least two.
        width: channels of the stem and of the first stage.
        num_classes: the number of logits.
        in_channels: the number of image channels.
        shortcut: what the shortcuts do where the channels change: "padded" with zeros (option A of the paper, no
            weights), or "projected" by a 1×1 convolution with batch norm (option B).
        activation: the activation functions, one of `ACTIVATIONS`.

    Raises:
        InputError: an unknown shortcut or activation.
    """

    min_image_size = 4

    def __init__(
        self,
        blocks: int,
        *,
        width: int = 16,
        num_classes: int = 10,
        in_channels: int = 3,
        shortcut: str = "padded",
        activation: str = "relu",
    ) -> None:
        if shortcut not in SHORTCUTS:
            raise unknown("shortcut", shortcut, SHORTCUTS)
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.activation = activation_function(activation)
        self.conv1 = conv3x3(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = self.activation()
        self.layer1 = _stage(blocks, width, width, 1, shortcut, self.activation)
        self.layer2 = _stage(blocks, width, 2 * width, 2, shortcut, self.activation)
        self.layer3 = _stage(blocks, 2 * width, 4 * width, 2, shortcut, self.activation)
        self.linear = nn.Linear(4 * width, num_classes)
        self.node_table = {
            "A": "relu",
            "B": f"layer1.{blocks - 1}.relu2",
            "C": f"layer2.{blocks - 1}.relu2",
            "D": f"layer3.{(blocks - 1) // 2}.relu2",
            "E": f"layer3.{blocks - 1}.relu2",
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images N×C×H×W to logits N×classes."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        logits: torch.Tensor = self.linear(out.mean((2, 3)))
        return logits


def _stage(
    blocks: int, in_channels: int, planes: int, stride: int, shortcut: str, activation: type[nn.Module]
) -> nn.Sequential:
    first = SmallBlock(in_channels, planes, stride, shortcut, activation)
    return nn.Sequential(first, *(SmallBlock(planes, planes, 1, shortcut, activation) for _ in range(blocks - 1)))


def _read_args(blocks: int, state_dict: Mapping[str, Shaped]) -> dict[str, Any]:
    if f"layer3.{blocks}.conv1.weight" in state_dict:
        raise KeyError(f"more than {blocks} blocks")
    stem, _ = state_dict["conv1.weight"].shape, state_dict[f"layer3.{blocks - 1}.conv1.weight"]
    return {
        "width": stem[0],
        "num_classes": state_dict["linear.weight"].shape[0],
        "in_channels": stem[1],
        "shortcut": SHORTCUTS["layer2.0.shortcut.0.weight" in state_dict],
    }


for _depth in (20, 32, 44, 56, 110):
    _blocks = (_depth - 2) // 6
    ARCHITECTURES.add(
        f"resnet{_depth}",
        Architecture(partial(SmallResNet, _blocks), partial(_read_args, _blocks), {"activation": tuple(ACTIVATIONS)}),
        summary=f"ResNet-{_depth} for CIFAR: three stages of 16, 32 and 64 channels, shortcuts padded or projected",
        source="He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv:1512.03385",
    )
