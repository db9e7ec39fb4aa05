"""Take off what is put around a network to compile, copy or spread it, since a hook inside would not see the whole."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from coprobe.errors import InputError


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside `torch.compile`, `DataParallel` and `DistributedDataParallel`, in any order and number.

    The model given is not changed; a network without wrappers comes back as it is.

    Raises:
        InputError: it is no `nn.Module`, a program instead of modules (TorchScript, torch.export), its weights are
            shards (FSDP, tensor parallelism), or a wrapper lies inside it, where it can't be taken off.
    """
    if _is_a(model, "torch.export.exported_program", "ExportedProgram"):
        raise InputError("an exported program has no modules to look into; give the network it was exported from")
    if not isinstance(model, nn.Module):
        raise InputError(f"a {type(model).__name__} is no torch.nn.Module; give the network itself")
    while (inner := _wrapped(model)) is not None:
        model = inner
    for name, module in model.named_modules():
        _refuse(name, module)
    return model


def _wrapped(model: nn.Module) -> nn.Module | None:
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return model.module
    if _is_a(model, "torch._dynamo.eval_frame", "OptimizedModule"):
        inner: nn.Module = model._orig_mod  # type: ignore[assignment]
        return inner
    return None


def _refuse(name: str, module: nn.Module) -> None:
    where = f"its part '{name}'" if name else "the model"
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError(
            f"{where} is a TorchScript program, which hooks can't look into; give the network it was made from"
        )
    fsdp = "torch.distributed.fsdp"
    # Asked of every module, often: `parameters()` would take six times as long.
    if (
        _is_a(module, fsdp, "FullyShardedDataParallel")
        or _is_a(module, fsdp, "FSDPModule")
        or any(_is_a(weight, "torch.distributed.tensor", "DTensor") for weight in module._parameters.values())
    ):
        raise InputError(
            f"the weights of {where} are shards (FSDP or tensor parallel); "
            "save the full state_dict and load it into the plain network"
        )
    if module._compiled_call_impl is not None:
        raise InputError(f"{where} was compiled in place by its compile(); give the network before that")
    if _wrapped(module) is not None:
        raise InputError(f"{where} is wrapped (in {type(module).__name__}) out of reach; build the network without it")


def _is_a(thing: object, module: str, name: str) -> bool:
    """`isinstance` for a class whose module is slow to import: whoever made such a thing has imported it."""
    kind: Any = getattr(sys.modules.get(module), name, ())
    return isinstance(thing, kind)
