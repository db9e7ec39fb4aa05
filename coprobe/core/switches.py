"""torch's switches for the whole process or thread, as coprobe counts on them, whatever the caller has set."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from coprobe.errors import InputError

#: Held while something is changed that all threads share (modes of a network, hooks, torch's switches), so that threads
#: take turns and each finds what it would find alone.
TURN = threading.RLock()

_DEVICES = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def usual_torch() -> Iterator[None]:
    """Gradients on, no autocast, no inference mode, new tensors float32 and on the CPU; as before after the block.

    So what is measured is the same wherever in a program it is asked for. As a decorator, for the whole function.

    Raises:
        InputError: inside `torch.vmap` or another transform of `torch.func`, whose tensors hold no numbers.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise InputError("coprobe was called inside torch.vmap, torch.func.grad or the like; call it outside")
    with ExitStack() as block:
        if torch.is_inference_mode_enabled():
            block.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            block.enter_context(torch.enable_grad())
        for device in _DEVICES:
            if torch.is_autocast_enabled(device):
                block.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            block.enter_context(torch.device("cpu"))
        block.enter_context(_float32())
        yield


_outside: list[torch.dtype] = []


@contextmanager
def _float32() -> Iterator[None]:
    """New tensors in float32: that is for all threads, so the first that needs it sets it, and the last one back."""
    with TURN:
        _outside.append(torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        with TURN:
            if len(_outside) == 1:
                torch.set_default_dtype(_outside[0])
            _outside.pop()


def ordinary(tensor: Tensor) -> Tensor:
    """The same numbers without a graph, as a tensor of no subclass that autograd can work with."""
    plain = tensor.detach().as_subclass(Tensor)
    return plain.clone() if plain.is_inference() else plain
