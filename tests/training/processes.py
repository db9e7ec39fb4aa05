"""`coprobe train` in processes of their own, which are there at once and are hit exactly where a test wants it."""

from __future__ import annotations

import functools
import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.started import FORKS, PATIENCE


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (minus the signal that killed it), and the lines that it wrote to stderr."""

    code: int
    lines: list[str]


@dataclass(frozen=True)
class Hit:
    """What a process does to itself, once, right before or after something happens for the `count`-th time (from 1).

    Args:
        event: `file`: before it opens a file of its run for writing, renames or removes one. `update`: after an
            update of the weights. `evaluation`: before the accuracies of an epoch are measured.
        count: which of these events.
        act: what it does.
    """

    event: str
    count: int
    act: Callable[[], Any]


def send(*numbers: int) -> Callable[[], None]:
    """An act: send oneself these signals."""
    return functools.partial(_send, numbers)


def limit_files(size: int) -> Callable[[], None]:
    """An act: from now on no file grows beyond so many bytes, as on a full disk."""
    # Python ignores SIGXFSZ: a write beyond the limit fails with EFBIG.
    return functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))


def train(
    out: Path,
    *arguments: str,
    hits: tuple[Hit, ...] = (),
    kill_after: float | None = None,
    prepare: Callable[[], None] | None = None,
) -> Ended:
    """Run `coprobe train --out OUT ARGUMENTS`, after `prepare`, to its end, or kill it after so many seconds."""
    reading, writing = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_work, args=(out, arguments, hits, prepare, writing))
    process.start()
    writing.close()
    try:
        process.join(PATIENCE if kill_after is None else kill_after)
        assert process.exitcode is not None or kill_after is not None, "the process hangs"
    finally:
        process.kill()
        process.join()
    with os.fdopen(os.dup(reading.fileno()), encoding="utf-8") as lines, reading:
        return Ended(int(process.exitcode or 0), lines.read().splitlines())


def _work(
    out: Path, arguments: tuple[str, ...], hits: tuple[Hit, ...], prepare: Callable[[], None] | None, stderr: Connection
) -> None:
    import torch

    from coprobe.cli import main

    sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
    sys.stderr = os.fdopen(stderr.fileno(), "w", encoding="utf-8", buffering=1, closefd=False)
    torch.set_num_threads(1)
    if prepare:
        prepare()
    for hit in hits:
        _arm(hit, out)
    sys.exit(main(["train", "--out", str(out), *arguments]))


def _arm(hit: Hit, out: Path) -> None:
    happened = 0

    def note(*_: Any) -> None:
        nonlocal happened
        happened += 1
        if happened == hit.count:
            hit.act()

    if hit.event == "file":
        sys.addaudithook(lambda event, about: note() if _changes(event, about, str(out)) else None)
    elif hit.event == "update":
        from torch.optim.optimizer import register_optimizer_step_post_hook

        register_optimizer_step_post_hook(note)
    else:
        from coprobe.training.monitor import Monitor

        measure = Monitor.measure
        Monitor.measure = lambda *given: (note(), measure(*given))[1]  # type: ignore[method-assign,func-returns-value]


def _changes(event: str, about: tuple[Any, ...], directory: str) -> bool:
    """Whether an audit event is a change of a file in the directory."""
    if event not in ("open", "os.rename", "os.remove") or not str(about[0]).startswith(f"{directory}/"):
        return False
    return event != "open" or bool(set(str(about[1])) & set("wax+"))


def _send(numbers: tuple[int, ...]) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)
