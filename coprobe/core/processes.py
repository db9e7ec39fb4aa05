"""Several processes that share the work of one: who they are, what they exchange."""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from coprobe.errors import CoprobeError, InputError, ReportedError, RunError

T = TypeVar("T")

#: Environment variable with the id of the process that started the others.
_LEADER = "COPROBE_LEADER"
#: Seconds that a process which failed leaves to process 0, which mostly failed for the same reason, to say so.
_PATIENCE = 5.0
#: Under which key in the store that all processes share one of them leaves the reason why it failed.
_REASON = "coprobe/failed/{}"


@dataclass(frozen=True)
class Processes:
    """The processes of a run; alone by default. Every method of it must be called in all of them.

    Args:
        rank: of this process, from 0.
        count: how many there are.
        fabric: the lightning-fabric that started them; None for one process.
    """

    rank: int = 0
    count: int = 1
    fabric: Any = None

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    def stretch(self, total: int, unit: int = 1, least: int = 0) -> tuple[int, int]:
        """Where this process's share of `total` things in a row begins and ends.

        It begins at a multiple of `unit`. What is left at the end is a unit, too, or belongs to the one before where it
        is less than `least`, which is `unit` if unset.
        """
        units = max(1, total // unit + (total % unit >= (least or unit)))
        first, stop = (rank * units // self.count * unit for rank in (self.rank, self.rank + 1))
        return first, total if self.rank == self.count - 1 else stop

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes; in place where there are several."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def share(self, value: T) -> T:
        """The value that process 0 gave."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """The values that all processes gave, by rank."""
        if self.count == 1:
            return [value]
        values = [value] * self.count
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process."""
        if self.count == 1:
            return flag
        return bool(self.sum(torch.tensor(int(flag), device=device)))

    def spread(self, model: nn.Module) -> nn.Module:
        """The same model, with the same parameters, whose backward pass averages gradients over the processes."""
        if self.fabric is None:
            return model
        with warnings.catch_warnings():
            # Its successor came with torch 2.15 and works otherwise.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
            return cast(nn.Module, self.fabric.setup_module(model))

    @contextmanager
    def together(self, remedy: str = "run the command again") -> Iterator[None]:
        """A block after which only process 0 goes on: no other outlives it, and if it fails, process 0 says why.

        Args:
            remedy: what to do if a process was killed.

        Raises:
            InputError, RunError: in process 0, if another one broke down; with its reason, where it had time to give
                one.
            ReportedError: in another process, whose reason process 0 gives.
        """
        if self.fabric is None:
            yield
        elif self.leads:
            with _outliving(self.fabric.strategy.launcher.procs, remedy):
                yield
                _part()
        else:
            try:
                yield
                _part()
            except BaseException as error:
                told = _tell(self.rank, error)
                time.sleep(_PATIENCE)
                if told:
                    raise ReportedError("process 0 says why") from error
                raise


def _part() -> None:
    """Close the connections of all processes at once: to lose one by the other's end can abort a process."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


ALONE = Processes()


def start(
    devices: int, device: torch.device, check: Callable[[], object] = lambda: None
) -> tuple[Processes, torch.device]:
    """Begin a run on this many devices: this process's place among them, and its own device.

    One device without torchrun is this process alone. Otherwise lightning-fabric starts the other processes, by
    running this program's command line again in each, or finds those that torchrun started, whose number counts.

    Args:
        devices: how many.
        device: of which type.
        check: called before other processes are started, so that a mistake that it finds is reported once.

    Raises:
        InputError: lightning-fabric is not installed, there are fewer devices, or they are neither CPU nor CUDA.
    """
    world = int(os.environ.get("WORLD_SIZE", devices))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", devices))
    if world == 1:
        return ALONE, device
    if device.type == "cuda" and local > torch.cuda.device_count():
        raise InputError(f"--devices {local}: this machine has {torch.cuda.device_count()} GPUs")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--devices {local}: work is shared on cuda and cpu only, not on {device.type}")
    if device.index:
        raise InputError(f"--device {device}: --devices {local} takes the first {local}; write --device {device.type}")
    fabric_of, strategy = _fabric()
    if "LOCAL_RANK" not in os.environ:
        check()
    _follow_leader()
    # Buffers are batch-norm statistics, each process its own; to send them would also touch graphs still in use.
    fabric = fabric_of(
        accelerator=device.type,
        devices=local,
        num_nodes=world // local,
        strategy=strategy(process_group_backend="nccl" if device.type == "cuda" else "gloo", broadcast_buffers=False),
    )
    fabric.launch()
    return Processes(fabric.global_rank, fabric.world_size, fabric), fabric.device


def _fabric() -> tuple[Any, Any]:
    """Fabric and its data-parallel strategy, from either package that holds them."""
    for package in ("lightning_fabric", "lightning.fabric"):
        try:
            strategies = importlib.import_module(f"{package}.strategies")
            logging.getLogger(f"{package}.utilities").setLevel(logging.WARNING)  # else it greets every process
            return importlib.import_module(package).Fabric, strategies.DDPStrategy
        except ImportError:
            continue
    raise InputError("several devices need lightning-fabric; run 'pip install lightning-fabric'")


def _follow_leader() -> None:
    """End this process when the one that started it is gone, in whatever way; else it would wait half an hour."""
    leader = int(os.environ.setdefault(_LEADER, str(os.getpid())))

    def follow() -> None:
        while os.getppid() == leader:
            time.sleep(0.5)
        os._exit(1)

    if leader != os.getpid():
        threading.Thread(target=follow, daemon=True).start()


def _tell(rank: int, error: BaseException) -> bool:
    """Leave process 0 the reason; whether it can be relied on to give it, which one that torchrun ends first can't."""
    if not dist.is_initialized():
        return False
    text = str(error) if isinstance(error, CoprobeError) else f"process {rank}: {type(error).__name__}: {error}"
    with suppress(Exception):  # the store is gone with process 0
        store = dist.distributed_c10d._get_default_store()
        store.set(_REASON.format(rank), json.dumps([isinstance(error, InputError), text]))
        return os.environ.get(_LEADER) != str(os.getpid())
    return False


def _told(rank: int) -> CoprobeError | None:
    """The reason that a process left."""
    if dist.is_initialized():
        with suppress(Exception):
            store = dist.distributed_c10d._get_default_store()
            if store.check([_REASON.format(rank)]):
                is_input, text = json.loads(store.get(_REASON.format(rank)))
                return InputError(text) if is_input else RunError(text)
    return None


class _ChildFailed(BaseException):
    """A child ended with an exit code other than 0; nothing on the way may take it for an error of its own."""


@contextmanager
def _outliving(children: list[subprocess.Popen[bytes]], remedy: str) -> Iterator[None]:
    """The children that are left after the block are killed: they wait for this process, and hold nothing of their own.

    Raises:
        InputError, RunError: a child has failed.
    """
    children, watched = children.copy(), children
    watched.clear()  # in this list a thread of lightning-fabric looks for failed children, to kill this process
    try:
        with _noticing(children):
            yield
    except CoprobeError:
        raise
    except (RuntimeError, _ChildFailed) as error:
        others = range(1, dist.get_world_size()) if dist.is_initialized() else ()
        if told := next(filter(None, map(_told, others)), None):
            raise told from error
        codes = [_exit_code(child) for child in children]
        if any(codes):
            failed = next(rank for rank, code in enumerate(codes, 1) if code)
            ended = f"process {failed} of the run ended with code {codes[failed - 1]}"
            raise RunError(f"{ended}; {remedy}") from error
        raise
    finally:
        for child in children:
            child.kill()
            child.wait()


@contextmanager
def _noticing(children: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Leave the block when a child fails, instead of working on for nothing."""

    def look(*_: object) -> None:
        if any(child.poll() for child in children):
            raise _ChildFailed

    if not children or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGCHLD, look)
    try:
        look()
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def _exit_code(child: subprocess.Popen[bytes]) -> int | None:
    """None while it runs; its connections break a moment before it is gone."""
    try:
        return child.wait(timeout=1)
    except subprocess.TimeoutExpired:
        return None
