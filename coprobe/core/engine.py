"""How the work runs: on which device, with what state of the model, in what portions."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from coprobe.core.state import evaluating
from coprobe.core.switches import TURN
from coprobe.errors import InputError, RunError

T = TypeVar("T")

#: Opens a progress display for (what is done, number of images) and yields a function that advances it.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

#: oneDNN computes an image bit for bit alike in all batches of at least so many.
FULL = 16

_REENTRANT = (
    "the network checkpoints activations with use_reentrant=True, which gives no gradients of images; "
    "set use_reentrant=False, or switch its checkpointing off"
)
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


def has_fast_bf16(device: torch.device | str) -> bool:
    """Whether a device computes bfloat16 itself; one that does not is slower with it than with float32."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread inside the block, so that no digit depends on how many cores there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def silent(what: str, images: int) -> Iterator[Callable[[int], None]]:
    """A progress display that shows nothing."""
    yield lambda done: None


@contextmanager
def products_in(precision: str | None) -> Iterator[None]:
    """Compute float32 products exactly, or on a GPU with TF32 if it is `tf32`; None leaves torch's own switches."""
    backends: Any = torch.backends
    on_gpu, on_cpu = (backends.cudnn.conv, backends.cuda.matmul), (backends.mkldnn.conv, backends.mkldnn.matmul)
    before = [(switch, switch.fp32_precision) for switch in (*on_gpu, *on_cpu)]
    try:
        if precision:
            for switch, _ in before:
                switch.fp32_precision = "tf32" if precision == "tf32" and switch in on_gpu else "ieee"
        yield
    finally:
        for switch, value in before:
            switch.fp32_precision = value


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and parameters without gradients inside the block; everything as before afterwards.

    The network itself says what evaluation mode is, see `evaluating`; `.grad` is not touched. Transformers compute
    attention in one way only, since torch's shortcut is taken or not depending on hooks and gradients, and gives other
    last digits. A model with a `precision` (see `Classifier`) has its float32 products computed exactly, or on a GPU
    with TF32 if it is `tf32`, whatever torch's own switches say. Threads take turns, since a network and these switches
    are the same for all.

    Raises:
        InputError: a gradient is asked for by the images, through activation checkpointing that gives none.
    """
    with TURN, evaluating(model):
        shortcut = torch.backends.mha.get_fastpath_enabled()
        grads = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            for parameter, _ in grads:
                parameter.requires_grad_(False)
            with products_in(getattr(model, "precision", None)):
                yield
        except RuntimeError as error:
            if "use_reentrant" in str(error):
                raise InputError(_REENTRANT) from error
            raise
        finally:
            torch.backends.mha.set_fastpath_enabled(shortcut)
            for parameter, required in grads:
                parameter.requires_grad_(required)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that the host's or the device's memory is exhausted."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)


def kind_of(model: nn.Module, image_shape: Sequence[int]) -> Hashable:
    """What decides, besides the device, how many images of a shape fit: the sizes of the weights and the precision."""
    shapes = tuple(tuple(parameter.shape) for parameter in model.parameters())
    return hash(shapes), tuple(image_shape), getattr(model, "precision", "32")


class BatchSize:
    """How many images are worked on at once: as many as memory has room for.

    Without a given size it starts at 512 on an accelerator and 64 on the CPU, and is halved where memory runs out.
    What was found is remembered for work of the same kind until the process ends. A given size is kept.

    Args:
        given: by a person; None finds one.
        device: where the work is done.
        kind: what else memory depends on, such as the network and the precision; None remembers nothing.
        few_sizes: whether every new size of a batch is dear, as for compiled networks; see `padded`.

    Raises:
        InputError: `given` below 1.
    """

    _found: ClassVar[dict[tuple[str, Hashable], int]] = {}

    def __init__(
        self,
        given: int | None = None,
        device: torch.device | str = "cpu",
        kind: Hashable | None = None,
        *,
        few_sizes: bool = False,
    ) -> None:
        if given is not None and given < 1:
            raise InputError(f"--batch-size {given}: must be at least 1")
        self._given = given
        self._key = None if kind is None else (str(device), kind)
        default = 64 if torch.device(device).type == "cpu" else 512
        self.now = given or (self._found.get(self._key, default) if self._key else default)
        self._few_sizes = few_sizes

    def padded(self, count: int) -> int:
        """To how many images a batch of `count` is best filled up.

        To 16 at least, since oneDNN computes an image bit for bit alike in all batches of at least so many; or, where
        new sizes are dear, to one of few.
        """
        if not self._few_sizes:
            return max(count, min(FULL, self.now))
        full = self.now
        while full // 2 >= max(count, FULL):
            full //= 2
        return max(full, count)

    def attempt(self, count: int, work: Callable[[], T]) -> tuple[T] | None:
        """What `work` on `count` images returns; None if memory ran out, and then `now` is below `count`.

        Raises:
            RunError: memory ran out at a given size, or at a single image.
        """
        try:
            return (work(),)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if count == 1:
                raise RunError("out of memory with a single image; use another --device") from error
            if self._given is not None:
                raise RunError(f"out of memory with {count} images at once; lower --batch-size") from error
        # here, not above, where the exception still holds the tensors of the frames that failed
        self.now = count // 2
        if self._key:
            self._found[self._key] = self.now
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


def in_batches(count: int, work: Callable[[int, int], T], size: BatchSize | None = None) -> Iterator[T]:
    """Yield `work(start, stop)` over consecutive ranges of `count` items, none of more than fit.

    A range for which memory ran out is done again in halves, and no later one is larger; see `BatchSize` for errors.
    """
    size = size or BatchSize()
    start = 0
    while start < count:
        stop = min(start + size.now, count)
        done = size.attempt(stop - start, lambda start=start, stop=stop: work(start, stop))  # type: ignore[misc]
        if done is None:
            continue
        yield done[0]
        start = stop
