"""The stages that make a network's fast form; each can be left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from coprobe.fast.folding import fold
from coprobe.fast.packed import Packed
from coprobe.fast.replacing import replace, replaceable
from coprobe.fast.winograd import Winograd
from coprobe.nodes import Node


@dataclass(frozen=True)
class Form:
    """Which stages are taken; all forms compute the same but for rounding.

    Args:
        fold: batch norm is folded into convolutions, and ReLUs work in place (see `coprobe.fast.folding`).
        channels_last: images and activations lie channels-last in memory.
        winograd: 3×3 convolutions of at least so many channels multiply less (see `coprobe.fast.winograd`); 0: none.
        packed: other convolutions keep their weights in oneDNN's order (see `coprobe.fast.packed`).
    """

    fold: bool = True
    channels_last: bool = True
    winograd: int = 0
    packed: bool = False

    def __str__(self) -> str:
        stages = {
            "folded": self.fold,
            "channels-last": self.channels_last,
            f"winograd from {self.winograd} channels": self.winograd,
            "packed": self.packed,
        }
        return ", ".join(stage for stage, is_taken in stages.items() if is_taken) or "plain"

    def build(self, network: nn.Module, watched: Sequence[Node] = ()) -> None:
        """Take the stages, but that of the layout, on a network in evaluation mode, in place.

        Args:
            network: float32, on its device; a copy that nobody else has.
            watched: nodes that will be recorded or masked.
        """
        if self.fold:
            fold(network, watched)
        for path in replaceable(network):
            module = network.get_submodule(path)
            if self.winograd and Winograd.suits(module, self.winograd):
                replace(network, path, Winograd(module))
            elif self.packed and Packed.suits(module):
                replace(network, path, Packed(module))


#: The network as it is, but for what every form has.
PLAIN = Form(fold=False, channels_last=False)


def forms(precision: str, device: torch.device, compiled: bool = False) -> list[Form]:
    """Those among which the fastest is looked for; the first is the default.

    Args:
        precision: see `coprobe.fast.precision`.
        device: where the network computes.
        compiled: torch.compile has its own kernels, and does not see through these.
    """
    if compiled or device.type not in ("cpu", "cuda"):
        return [Form()]
    if device.type == "cuda":
        return [Form(), Form(channels_last=False)]
    if precision == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return [Form()]  # oneDNN has no kernels for it here, and all forms are equally slow
    others = [Form(packed=True), Form(channels_last=False), PLAIN]
    if precision == "bf16":
        return [Form(), *others]
    return [Form(winograd=128), Form(winograd=64), Form(winograd=64, packed=True), Form(), *others]
