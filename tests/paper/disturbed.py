"""A scale whose trainings are hit, in the process that does them: right before their history is written."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from coprobe.paper.runs import Scale
from tests.paper.tiny import TINY


@dataclass(frozen=True)
class Disturbed(Scale):
    """The tiny scale; what is sent to a worker arms itself there.

    Args:
        act: called with `notes` when an epoch of a training is done, and not saved yet.
        epoch: which of those that the process does, from 1.
        notes: where it leaves word.
    """

    act: Callable[[Path], None] = lambda notes: None
    epoch: int = 2
    notes: Path = Path()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        written: list[str] = []

        def note(event: str, about: tuple[Any, ...]) -> None:
            if event == "os.rename" and str(about[1]).endswith("history.csv"):
                written.append(str(about[1]))
                if written.count(str(about[1])) == self.epoch:
                    self.act(self.notes)

        sys.addaudithook(note)


def disturbed(act: Callable[[Path], None], notes: Path, epoch: int = 2) -> Disturbed:
    """The tiny scale with this act; `notes` is made."""
    notes.mkdir(exist_ok=True)
    tiny = {field.name: getattr(TINY, field.name) for field in fields(Scale)}
    return Disturbed(**tiny, act=act, epoch=epoch, notes=notes)


def die_once(notes: Path) -> None:
    """The first process to come here is killed."""
    try:
        (notes / "dead").touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def die(notes: Path) -> None:
    """Every process that comes here is killed."""
    (notes / f"{os.getpid()}").touch()
    os.kill(os.getpid(), signal.SIGKILL)


def await_sigterm(notes: Path) -> None:
    """Go on when SIGTERM has come, and whoever handled it before has it."""
    came: list[int] = []
    before: Any = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *about: (came.append(1), before(*about)))
    (notes / f"{os.getpid()}").touch()
    while not came:
        time.sleep(0.01)
