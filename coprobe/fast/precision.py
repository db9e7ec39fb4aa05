"""What a network computes in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coprobe.errors import InputError, unknown

#: `32` (float32 throughout), `tf32` (a GPU's tensor cores, 10 bits of mantissa), `bf16`.
PRECISIONS = ("32", "tf32", "bf16")

#: Modules whose weights can be held in bfloat16 as they are; others run under autocast, which knows what to leave.
_KNOWN = (
    nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm, nn.ReLU, nn.Identity, nn.Sequential, nn.MaxPool2d, nn.AvgPool2d,
    nn.AdaptiveAvgPool2d, nn.Flatten, nn.Dropout,
)  # fmt: skip


def check_precision(precision: str, device: torch.device | str) -> None:
    """Raise `InputError` unless there is such a precision, and the device has it."""
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if precision == "tf32" and torch.device(device).type != "cuda":
        raise InputError("--precision tf32: only CUDA GPUs have it; use 32 or bf16")


def can_hold_bfloat16(network: nn.Module) -> bool:
    """Whether all modules that hold weights are known to compute in whatever type these have."""
    return all(
        isinstance(module, _KNOWN) or not [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        for module in network.modules()
    )


def hold_bfloat16(network: nn.Module) -> None:
    """Round the weights to bfloat16, in place; the few numbers of a batch norm stay exact, whatever comes in."""
    for module in network.modules():
        if not isinstance(module, nn.BatchNorm2d):
            module._apply(_rounded, recurse=False)


def _rounded(tensor: Tensor) -> Tensor:
    return tensor.bfloat16() if tensor.is_floating_point() else tensor
