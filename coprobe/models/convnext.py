"""ConvNeXt for small images: patches of 2×2 pixels, four stages, GELU, LayerNorm (Liu et al., arXiv:2201.03545).

Weights are named as by the authors (`downsample_layers.0.0`, `stages.0.0.pwconv1`, `head`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from coprobe.models.catalog import ARCHITECTURES, Architecture, Network, Shaped


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of features N×C×H×W, at each position."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features N×C×H×W to the same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """A depthwise 7×7 convolution and two linear layers with GELU between them at each position, beside a shortcut.

    Args:
        planes: channels of input and output; between the linear layers there are four times as many.
        layer_scale: whether every channel of the result is scaled, at first by 1e-6.
    """

    def __init__(self, planes: int, layer_scale: bool) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(planes, planes, 7, padding=3, groups=planes)
        self.norm = nn.LayerNorm(planes, eps=1e-6)
        self.pwconv1 = nn.Linear(planes, 4 * planes)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * planes, planes)
        self.gamma = nn.Parameter(torch.full((planes,), 1e-6)) if layer_scale else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features N×planes×H×W to the same shape."""
        out = self.norm(self.dwconv(x).permute(0, 2, 3, 1))  # N×H×W×planes
        out = self.pwconv2(self.act(self.pwconv1(out)))
        if self.gamma is not None:
            out = self.gamma * out
        result: torch.Tensor = x + out.permute(0, 3, 1, 2)
        return result


class ConvNeXt(Network):
    """A stem of patches and four stages with 1, 2, 4 and 8 times `width` channels, the last three at stride 2.

    Nothing follows a block's sum, so the nodes are inside: A is the first GELU of all, B…E the last one of each stage,
    with 4 times the stage's channels. Features are last there: N×H×W×C.

    Args:
        depths: the number of blocks in each of the four stages, at least two in the first.
        width: channels of the stem and of the first stage.
        num_classes: the number of logits.
        in_channels: the number of image channels.
        patch: side of the stem's patches in pixels.
        layer_scale: whether every channel of a block's result is scaled, at first by 1e-6.
    """

    activation = nn.GELU
    node_axis = 3

    def __init__(
        self,
        depths: Sequence[int],
        *,
        width: int = 40,
        num_classes: int = 10,
        in_channels: int = 3,
        patch: int = 2,
        layer_scale: bool = False,
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.min_image_size = 8 * patch
        planes = [width * 2**i for i in range(4)]
        stem = nn.Sequential(nn.Conv2d(in_channels, width, patch, stride=patch), LayerNorm2d(width, eps=1e-6))
        self.downsample_layers = nn.ModuleList([stem])
        for into, out in pairwise(planes):
            halving = nn.Conv2d(into, out, 2, stride=2)
            self.downsample_layers.append(nn.Sequential(LayerNorm2d(into, eps=1e-6), halving))
        self.stages = nn.ModuleList(
            nn.Sequential(*(ConvNeXtBlock(channels, layer_scale) for _ in range(depth)))
            for channels, depth in zip(planes, depths, strict=True)
        )
        self.norm = nn.LayerNorm(planes[-1], eps=1e-6)
        self.head = nn.Linear(planes[-1], num_classes)
        self.node_table = {"A": "stages.0.0.act"} | {
            node: f"stages.{number}.{depth - 1}.act"
            for number, (node, depth) in enumerate(zip("BCDE", depths, strict=True))
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images N×C×H×W to logits N×classes."""
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        logits: torch.Tensor = self.head(self.norm(x.mean((2, 3))))
        return logits


def _read_args(state_dict: Mapping[str, Shaped]) -> dict[str, Any]:
    stem = state_dict["downsample_layers.0.0.weight"].shape
    return {
        "width": stem[0],
        "num_classes": state_dict["head.weight"].shape[0],
        "in_channels": stem[1],
        "patch": stem[2],
        "layer_scale": "stages.0.0.gamma" in state_dict,
    }


for _name, _depths in (("atto", (2, 2, 6, 2)), ("tiny", (3, 3, 9, 3))):
    ARCHITECTURES.add(
        f"convnext-{_name}",
        Architecture(partial(ConvNeXt, _depths), _read_args),
        summary=f"ConvNeXt-{_name.title()} for small images (patches of 2×2 pixels)",
        source="Liu et al., A ConvNet for the 2020s, CVPR 2022, arXiv:2201.03545",
    )
