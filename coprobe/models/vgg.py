"""VGG with batch norm for small images (Simonyan and Zisserman, ICLR 2015, arXiv:1409.1556).

The original's three fully connected layers are replaced by global average pooling and one linear layer, as is
usual at 32 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from coprobe.models.catalog import ARCHITECTURES, Architecture, Network, Shaped
from coprobe.models.layers import ACTIVATIONS, activation_function


class VGG(Network):
    """3×3 convolutions at five resolutions with 1, 2, 4, 8 and 8 times `width` channels, then pooling.

    Nodes A…E are the last ReLU of each resolution, before its pooling.

    Args:
        depths: the number of convolutions at each of the five resolutions.
        width: channels at the first resolution.
        num_classes: the number of logits.
        in_channels: the number of image channels.
        activation: the activation functions, one of `ACTIVATIONS`.

    Raises:
        InputError: an unknown activation.
    """

    min_image_size = 32

    def __init__(
        self,
        depths: Sequence[int],
        *,
        width: int = 64,
        num_classes: int = 10,
        in_channels: int = 3,
        activation: str = "relu",
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.activation = activation_function(activation)
        layers: list[nn.Module] = []
        self.node_table = {}
        channels = in_channels
        for node, depth, multiple in zip("ABCDE", depths, (1, 2, 4, 8, 8), strict=True):
            planes = multiple * width
            for _ in range(depth):
                layers += [nn.Conv2d(channels, planes, 3, padding=1), nn.BatchNorm2d(planes), self.activation()]
                channels = planes
            self.node_table[node] = f"features.{len(layers) - 1}"
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images N×C×H×W to logits N×classes."""
        logits: torch.Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


def _read_args(state_dict: Mapping[str, Shaped]) -> dict[str, Any]:
    stem = state_dict["features.0.weight"].shape
    return {"width": stem[0], "num_classes": state_dict["classifier.weight"].shape[0], "in_channels": stem[1]}


for _number, _depths in ((11, (1, 1, 2, 2, 2)), (16, (2, 2, 3, 3, 3)), (19, (2, 2, 4, 4, 4))):
    ARCHITECTURES.add(
        f"vgg{_number}",
        Architecture(partial(VGG, _depths), _read_args, {"activation": tuple(ACTIVATIONS)}),
        summary=f"VGG-{_number} with batch norm and one linear layer after global average pooling",
        source="Simonyan and Zisserman, Very Deep Convolutional Networks, ICLR 2015, arXiv:1409.1556",
    )
