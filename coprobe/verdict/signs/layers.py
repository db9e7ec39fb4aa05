"""The layers of a network whose weights signs look at or change."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn

from coprobe.checkpoint import Checkpoint


def weights_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights of convolutions and linear layers by the path of the layer, in the order of the network."""
    layers = checkpoint.model.network.named_modules()
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    return {path: layer.weight.detach() for path, layer in layers if isinstance(layer, kinds)}


def with_weight(checkpoint: Checkpoint, path: str, weight: Tensor) -> Checkpoint:
    """A copy of the checkpoint in which one layer has other weights."""
    changed = replace(checkpoint, model=deepcopy(checkpoint.model))
    with torch.no_grad():
        weights_of(changed)[path].copy_(weight)  # which shares its memory with the parameter
    return changed
