"""Tensors from a file into a network, one at a time, so that loading takes little more memory than the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from coprobe.checkpoint.candidates import Weight
from coprobe.checkpoint.reader import Contents
from coprobe.checkpoint.reader.values import UnreadableTensor
from coprobe.checkpoint.reparametrised import Reparametrised
from coprobe.errors import InputError
from coprobe.models.catalog import COUNTER

#: Elements converted at a time.
_CHUNK = 1 << 20


def fill_network(
    network: nn.Module, weights: Mapping[str, Weight], contents: Contents, *, as_stored: bool = False
) -> None:
    """Give a network, on the meta device or the CPU, its weights; those that the file lacks stay as they are.

    Half precision, bfloat16 and float64 become what the network has, mostly float32.

    Args:
        network: whose names and shapes the weights are known to fit.
        weights: names to what is in the file.
        contents: the open file.
        as_stored: whether floating-point numbers keep the file's type where the network is on the meta device.

    Raises:
        InputError: a weight is no plain tensor of real numbers, can't be read, or is not finite.
    """
    own = {name: tensor for name, tensor in network.state_dict().items() if isinstance(tensor, Tensor)}
    read: dict[str, Tensor] = {}
    for name, weight in weights.items():
        tensor = _checked(name, read_weight(name, weight, contents), own[name].dtype)
        if own[name].is_meta:
            dtype = own[name].dtype
            read[name] = tensor if as_stored and dtype.is_floating_point else tensor.to(dtype)
        else:
            with torch.no_grad():
                own[name].copy_(tensor)
    for name, tensor in own.items():
        if tensor.is_meta and name.endswith(COUNTER):  # old files have none; nothing in evaluation mode reads it
            read.setdefault(name, torch.zeros((), dtype=tensor.dtype))
    if read:
        network.load_state_dict(read, strict=False, assign=True)


def read_weight(name: str, weight: Weight, contents: Contents) -> Tensor:
    """One tensor of the file; raises `InputError` if it is no plain tensor of real numbers."""
    if isinstance(weight, UnreadableTensor):
        raise InputError(
            f"weight '{name[:80]}' is no plain tensor of real numbers: it {weight.reason}; save a dense state_dict"
        )
    if isinstance(weight, Reparametrised):
        return weight.folded(lambda part: contents.tensors({"": part})[""])
    # One at a time: tensors that share a storage in the file must not share it in the network.
    return contents.tensors({name: weight})[name]


def _checked(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.is_complex() or (dtype.is_floating_point and not tensor.is_floating_point()):
        found = str(tensor.dtype).removeprefix("torch.")
        raise InputError(f"weight '{name[:80]}' is no plain tensor of real numbers ({found}); save a float state_dict")
    if not is_finite(tensor, dtype):
        raise InputError(
            f"weight '{name[:80]}' is not finite (NaN or infinite); the training diverged, "
            "so take an earlier checkpoint"
        )
    return tensor.contiguous()


def is_finite(tensor: Tensor, dtype: torch.dtype = torch.float64) -> bool:
    """Whether all elements are finite as numbers of `dtype`, without a large temporary tensor."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    parts = tensor.flatten().split(_CHUNK)
    # extremes are NaN where one element is
    return all(math.isfinite(extreme.item()) for part in parts for extreme in part.to(dtype).aminmax())
