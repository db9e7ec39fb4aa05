"""Processes that are threads of this one."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from coprobe.core.processes import Processes

T = TypeVar("T")


@dataclass(frozen=True)
class Together(Processes):
    """What one gives to the others is copied, as between real processes."""

    board: Any = None
    barrier: Any = None

    def gather(self, value: T) -> list[T]:
        self.board[self.rank] = pickle.dumps(value)
        self.barrier.wait(10)
        gathered = [pickle.loads(given) for given in self.board]
        self.barrier.wait(10)
        return gathered

    def broadcast(self, value: T) -> T:
        return self.gather(value)[0]


def in_threads(count: int, work: Callable[[Processes], T]) -> list[T]:
    """What `work` returns in each of so many processes."""
    board, barrier = [b""] * count, threading.Barrier(count)
    found: dict[int, T] = {}
    failed: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            found[rank] = work(Together(rank, count, board=board, barrier=barrier))
        except BaseException as error:
            failed.append(error)
            barrier.abort()

    # What `engine.frozen` switches and restores belongs to all threads, which may restore it in any order.
    products: tuple[Any, ...] = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    shortcut, before = torch.backends.mha.get_fastpath_enabled(), [switch.fp32_precision for switch in products]
    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.backends.mha.set_fastpath_enabled(shortcut)
    for switch, precision in zip(products, before, strict=True):
        switch.fp32_precision = precision
    for error in failed:
        raise error
    return [found[rank] for rank in range(count)]
