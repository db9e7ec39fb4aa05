"""Processes that train together, forked at once from a server that has imported torch."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from coprobe.core.processes import Processes
from tests.started import FORKS, PATIENCE


def in_group(count: int, work: Callable[[Processes, Path], Any], folder: Path) -> list[Any]:
    """What `work` gives in each of `count` processes, by rank; its second argument is `folder`, which is there."""
    own = _own(count, folder)
    own.mkdir()
    members = [FORKS.Process(target=_member, args=(rank, count, work, folder, own)) for rank in range(count)]
    for member in members:
        member.start()
    try:
        for member in members:
            member.join(PATIENCE)
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
        processes = Processes(rank, count, rank, dist.FileStore(str(own / "meeting"), count))
        processes.connect(torch.device("cpu"))
        torch.save(work(processes, folder), own / f"{rank}.pt")
        dist.barrier()  # the meeting ends for all when process 0 goes
    except BaseException:
        (own / f"{rank}.failed").write_text(traceback.format_exc())
        raise
