"""Processes that share the work of one: how they begin and end, which one this is, what they exchange."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from coprobe.errors import CoprobeError, InputError, InterruptedRunError, RunError

T = TypeVar("T")

#: How new processes are started (see `multiprocessing`).
START_METHOD = "spawn"
#: Seconds that processes have to end by themselves after one of them failed, and again after SIGTERM.
_GRACE = 5.0
#: Keys of a group's store: why it failed, and that this has been said.
_REASON, _SAID = "coprobe/reason", "coprobe/said"


@dataclass(frozen=True)
class Processes:
    """The processes of a run; alone by default. Every method but `report` must be called in all of them.

    Args:
        rank: of this process, from 0.
        world_size: how many there are.
        local_rank: of this process among those of its machine, from 0; the number of its GPU.
        store: what they find each other by.
        supervised: whether the process that started them says why they fail (see `launch`).
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    store: dist.Store | None = None
    supervised: bool = False

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    def shard(self, total: int, unit: int = 1, least: int = 0) -> tuple[int, int]:
        """Where this process's share of `total` things in a row begins and ends.

        It begins at a multiple of `unit`. What is left at the end is a unit, too, or belongs to the one before where it
        is less than `least`, which is `unit` if unset.
        """
        units = max(1, total // unit + (total % unit >= (least or unit)))
        first, stop = (rank * units // self.world_size * unit for rank in (self.rank, self.rank + 1))
        return first, total if self.rank == self.world_size - 1 else stop

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes; in place where there are several."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast(self, value: T) -> T:
        """The value that process 0 gave."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """The values that all processes gave, by rank."""
        if self.world_size == 1:
            return [value]
        values = [value] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process."""
        if self.world_size == 1:
            return flag
        return bool(self.sum(torch.tensor(int(flag), device=device)))

    def data_parallel(self, model: nn.Module) -> nn.Module:
        """The same model, with the same parameters, whose backward pass averages gradients over the processes."""
        if self.store is None:
            return model
        with warnings.catch_warnings():
            # Buffers are batch-norm statistics, each process its own; to send them would also touch graphs still in
            # use. The argument's successor came with torch 2.15 and works otherwise.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
            return DistributedDataParallel(model, broadcast_buffers=False)

    def connect(self, device: torch.device) -> torch.device:
        """Form the process group, if that is not done yet; returns the device that is this process's own.

        Raises:
            InputError: this machine has too few GPUs.
        """
        if self.store is None:
            return device
        check_devices(self.local_rank + 1, device)
        if device.type == "cuda":
            device = torch.device("cuda", self.local_rank)
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            backend, own = ("nccl", device) if device.type == "cuda" else ("gloo", None)
            dist.init_process_group(
                backend, store=self.store, rank=self.rank, world_size=self.world_size, device_id=own
            )
        return device

    def disconnect(self) -> None:
        """Close all connections at once: to lose one by the other's end can abort a process."""
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()

    def report(self, message: str, code: int, say: Callable[[str], object], *, expected: bool = True) -> None:
        """Make known why this process fails, once in the group: what fails later fails for the same reason.

        Args:
            message: why.
            code: the exit code.
            say: called with the message in the process that failed first, unless they are supervised.
            expected: whether the message tells what is wrong; what was not foreseen may be a lost connection only.
        """
        if self.store is None:
            say(message)
            return
        reason = json.dumps([self.rank, code, message, expected])
        with suppress(dist.DistError):  # the store is gone, and with it the process that had it and spoke
            first = self.store.compare_set(_REASON, "", reason).decode() == reason
            if first and not self.supervised:
                say(message)
                self.store.set(_SAID, "")
            elif not self.supervised:
                # torchrun ends all processes when the first one goes.
                self.store.wait([_SAID], timedelta(seconds=_GRACE))


ALONE = Processes()


def torchrun() -> Processes:
    """The processes of which torchrun started this one, by the environment variables that it sets."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return ALONE
    store, rank, world_size = next(dist.rendezvous("env://"))
    return Processes(rank, world_size, int(os.environ["LOCAL_RANK"]), store)


def check_devices(count: int, device: torch.device) -> None:
    """Raise `InputError` if so many processes of this machine can't each have a device of this type."""
    if device.type == "cuda" and count > torch.cuda.device_count():
        raise InputError(f"--devices {count}: this machine has {torch.cuda.device_count()} GPUs")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--devices {count}: work is shared on cuda and cpu only, not on {device.type}")
    if device.index:
        raise InputError(f"--device {device}: --devices {count} takes the first {count}; write --device {device.type}")


@contextmanager
def safe_path() -> Iterator[None]:
    """A block whose new interpreters import nothing from the current folder, where strangers' files may be.

    Python before 3.11 has no such mode.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        del os.environ["PYTHONSAFEPATH"]
        if before is not None:
            os.environ["PYTHONSAFEPATH"] = before


def launch(count: int, work: Callable[[Processes], int], remedy: str) -> None:
    """Do `work` in `count` new processes of this machine, and wait for them.

    SIGTERM and SIGINT are passed on to them. When one fails, or this process dies, the others are ended.

    Args:
        count: how many.
        work: what each of them does, a picklable function; it calls `Processes.report` if it fails. Its value is the
            exit code.
        remedy: what to do if a process was killed.

    Raises:
        InputError, RunError, InterruptedRunError: a process failed; with the message and exit code of the first one.
    """
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # else it says whom it ends
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with _Signals() as signals:
        with safe_path():
            members = mp.start_processes(
                _begin, (count, store.port, work), count, join=False, start_method=START_METHOD
            )
        signals.pass_on_to(members.pids())
        try:
            while not members.join(grace_period=_GRACE):
                pass
            return
        except (mp.ProcessExitedException, mp.ProcessRaisedException) as error:
            failure = error
    codes = [member.exitcode for member in members.processes]
    killed = [rank for rank, code in enumerate(codes) if code < 0 and code != -signal.SIGTERM]
    _, code, message, expected = json.loads(store.get(_REASON)) if store.check([_REASON]) else (0, 0, "", False)
    if expected or (message and not killed):
        raise _error(message, code)
    if isinstance(failure, mp.ProcessRaisedException):
        raise failure
    if killed:
        raise RunError(f"process {killed[0]} of the run ended with code {codes[killed[0]]}; {remedy}")
    if signals.came:
        signal.raise_signal(signals.came[0])  # as it would have ended a single process
    raise RunError(f"process {failure.error_index} of the run ended with code {failure.exit_code}; {remedy}")


def _begin(rank: int, count: int, port: int, work: Callable[[Processes], int]) -> None:
    """What a new process does."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C goes to the supervisor alone, which passes it on once
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // count))
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    sys.exit(work(Processes(rank, count, rank, store, supervised=True)))


class _Signals:
    """SIGTERM and SIGINT, passed on to other processes as long as the block runs.

    Attributes:
        came: those that came.
    """

    def __init__(self) -> None:
        self.came: list[int] = []
        self._children: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._before = {number: signal.signal(number, self._take) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def pass_on_to(self, children: list[int]) -> None:
        """Name the processes; what came before there were any ends them, who have not begun with anything."""
        self._children = children
        if self.came:
            self._send(signal.SIGTERM)

    def _take(self, number: int, _: object) -> None:
        self.came.append(number)
        self._send(number)

    def _send(self, number: int) -> None:
        for child in self._children:
            with suppress(ProcessLookupError):
                os.kill(child, number)


def _error(message: str, code: int) -> CoprobeError:
    if code == InputError.exit_code:
        return InputError(message)
    return InterruptedRunError(message, code - 128) if code > 128 else RunError(message)
