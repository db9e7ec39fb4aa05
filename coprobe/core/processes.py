"""Processes that share the work of one: how they begin and end, which one this is, what they exchange."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.context import BaseContext
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from coprobe.errors import CoprobeError, InputError, InterruptedRunError, RunError

T = TypeVar("T")

#: What the server has imported from which new processes are forked: a fork takes 20 ms, these imports take seconds.
PRELOADED = ["coprobe.probe", "coprobe.training.trainer", "torch._dynamo"]
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


def context() -> BaseContext:
    """How new processes begin: on Linux as forks of a server, which has no threads and no GPU; elsewhere afresh."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(PRELOADED)
    return forks


def follow_parent() -> None:
    """In a new process: leave Ctrl-C to the parent, which passes it on once, and take its death for SIGTERM."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()

    def wait_for_its_end() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait_for_its_end, daemon=True).start()


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
    children: list[int] = []
    with _passing_on(children) as signals:
        method = context().get_start_method()
        members = mp.start_processes(_begin, (count, store.port, work), count, join=False, start_method=method)
        children += members.pids()
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
    if signals:
        signal.raise_signal(signals[0])  # as it would have ended a single process
    raise RunError(f"process {failure.error_index} of the run ended with code {failure.exit_code}; {remedy}")


def _begin(rank: int, count: int, port: int, work: Callable[[Processes], int]) -> None:
    """What a new process does."""
    follow_parent()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // count))
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    sys.exit(work(Processes(rank, count, rank, store, supervised=True)))


@contextmanager
def _passing_on(children: list[int]) -> Iterator[list[int]]:
    """SIGTERM and SIGINT go to those processes while the block runs; yields the signals that came."""
    came: list[int] = []

    def pass_on(number: int, _: object) -> None:
        came.append(number)
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, number)

    if threading.current_thread() is not threading.main_thread():  # Python allows handlers nowhere else
        yield came
        return
    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _error(message: str, code: int) -> CoprobeError:
    if code == InputError.exit_code:
        return InputError(message)
    return InterruptedRunError(message, code - 128) if code > 128 else RunError(message)
