"""Processes that train together, forked at once from a server that has imported torch."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from coprobe.core.processes import _LEADER, Processes, _follow_leader, start

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["coprobe.training.trainer", "lightning_fabric", "sklearn.datasets"])
_PATIENCE = 120.0


def in_group(count: int, work: Callable[[Processes, Path], Any], folder: Path) -> list[Any]:
    """What `work` gives in each of `count` processes, by rank; its second argument is `folder`, which is there."""
    own = _own(count, folder)
    own.mkdir()
    members = [_FORKS.Process(target=_member, args=(rank, count, work, folder, own)) for rank in range(count)]
    for member in members:
        member.start()
    try:
        for member in members:
            member.join(_PATIENCE)
        failures = "".join(path.read_text() for path in sorted(own.glob("*.failed")))
        assert [member.exitcode for member in members] == [0] * count, failures or "a process hangs"
    finally:
        for member in members:
            member.kill()
            member.join()
    return given_by(count, folder)


def given_by(count: int, folder: Path) -> list[Any]:
    """What each process of a group gave that has worked with this folder."""
    return [torch.load(_own(count, folder) / f"{rank}.pt", weights_only=True) for rank in range(count)]


def _own(count: int, folder: Path) -> Path:
    return folder / f"group-{count}"


def _member(rank: int, count: int, work: Callable[[Processes, Path], Any], folder: Path, own: Path) -> None:
    torch.set_num_threads(1)
    try:
        # Processes that meet through a file need no port, which somebody else might take.
        dist.init_process_group("gloo", init_method=f"file://{own}/meeting", rank=rank, world_size=count)
        os.environ |= {"WORLD_SIZE": str(count), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        processes, _ = start(count, torch.device("cpu"))
        assert (processes.rank, processes.count) == (rank, count)
        torch.save(work(processes, folder), own / f"{rank}.pt")
        dist.barrier()  # the meeting ends for all when process 0 goes
    except BaseException:
        (own / f"{rank}.failed").write_text(traceback.format_exc())
        raise


def abandoned() -> Connection:
    """A pipe to a process that follows its leader; when this returns, the leader is gone."""
    reading, writing = _FORKS.Pipe(duplex=False)
    leader = _FORKS.Process(target=_abandon, args=(writing,))
    leader.start()
    writing.close()
    leader.join(_PATIENCE)
    return reading


def _abandon(writing: Connection) -> None:
    os.environ[_LEADER] = str(os.getpid())
    if os.fork() == 0:
        _follow_leader()
        time.sleep(_PATIENCE)
    os._exit(0)
