"""What passes through a network."""

from __future__ import annotations

import torch
from torch import Tensor

from coprobe.models import Network


def passed(network: Network) -> tuple[list[Tensor], Tensor]:
    """What one image of 32×32 makes at the network's nodes, in their order, and the logits."""
    features: list[Tensor] = []
    for path in network.node_table.values():
        network.get_submodule(path).register_forward_hook(lambda module, args, output: features.append(output))
    logits = network(torch.rand(1, 3, 32, 32))
    return features, logits
