"""How the work runs: on which device, with what state of the model, in what portions, from which seeds."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from coprobe.errors import InputError, RunError

T = TypeVar("T")

#: Opens a progress display for (what is done, number of images) and yields a function that advances it.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED", "bad_alloc")


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`; `auto` takes CUDA, then MPS, then the CPU.

    Raises:
        InputError: the name is no device, or the device is not there. Nothing falls back unseen.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device '{name}' is no device; use cpu, cuda, cuda:1 or mps") from None
    present = {
        "cpu": True,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available() and not device.index,
    }
    if not present.get(device.type, False):
        raise InputError(f"--device {name}: this machine has no such device; use --device cpu")
    return device


@contextmanager
def silent(what: str, images: int) -> Iterator[Callable[[int], None]]:
    """A progress display that shows nothing."""
    yield lambda done: None


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and parameters without gradients inside the block; every flag as before afterwards.

    Batch-norm statistics and `.grad` are not touched, since nothing in evaluation mode writes to them. Transformers
    compute attention in one way only, since torch's shortcut is taken or not depending on hooks and gradients, and
    gives other last digits.
    """
    shortcut = torch.backends.mha.get_fastpath_enabled()
    modes = [(module, module.training) for module in model.modules()]
    grads = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        model.eval()
        for parameter, _ in grads:
            parameter.requires_grad_(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(shortcut)
        for module, mode in modes:
            module.training = mode
        for parameter, required in grads:
            parameter.requires_grad_(required)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that the host's or the device's memory is exhausted."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)


def in_batches(
    count: int,
    work: Callable[[int, int], T],
    *,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[T]:
    """Yield `work(start, stop)` over consecutive ranges of `count` items.

    Without a `batch_size` it starts at 512 on an accelerator and 128 on the CPU; a range for which memory ran
    out is done again in halves, and no later one is larger. A given `batch_size` is kept.

    Raises:
        InputError: `batch_size` below 1.
        RunError: memory runs out at a given batch size, or at a single item.
    """
    if batch_size is not None and batch_size < 1:
        raise InputError(f"--batch-size {batch_size}: must be at least 1")
    size = batch_size or (128 if torch.device(device).type == "cpu" else 512)
    start = 0
    while start < count:
        stop = min(start + size, count)
        failed = False
        try:
            done = work(start, stop)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if stop - start == 1:
                raise RunError("out of memory with a single image; use another --device") from error
            if batch_size is not None:
                raise RunError(f"out of memory with {stop - start} images at once; lower --batch-size") from error
            failed = True
        if failed:  # here, not above, where the exception still holds the tensors of the frames that failed
            size = (stop - start) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        yield done
        start = stop


def generator_for(seed: int, purpose: str, *place: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that depends on the seed, on what it is for, and on where in the work; on nothing else.

    So a batch has the same random numbers whatever was computed before it, and two purposes (an attack's start,
    the noise of an evaluation) never share theirs.

    Args:
        seed: 0 or more.
        purpose: in a word, for example `attack`.
        place: epoch, first image and the like, each 0 or more and below 2³².
        device: where the random numbers are drawn.
    """
    # as spawn key, because a list of entropy is padded with zeros: (seed, 0) would be (seed,)
    key = (zlib.crc32(purpose.encode()), *place)
    state = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)
    return torch.Generator(device=device).manual_seed(int(state[0]))
