"""Opening a file and reading every tensor of it, as the tests of hostile files and the fuzzer do."""

from __future__ import annotations

import hashlib
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from coprobe.checkpoint.reader import open_checkpoint
from coprobe.checkpoint.reader.values import GlobalName, OpaqueObject, TensorSpec, UnreadableTensor

#: However busy a machine is, what it works on takes less than so many times its processor time.
_WAITING = 30


class HangError(BaseException):
    """A file took longer than it may; no handler of the reader may swallow this."""


@dataclass(frozen=True)
class Reading:
    """What came out of a file: a digest of all of it, its tensors' bytes, and why others were not read."""

    kind: str
    digest: str
    nbytes: int
    reasons: tuple[str, ...]
    notes: tuple[str, ...]


def read_all(path: str | Path) -> Reading:
    """Open a file and read every tensor that it offers."""
    with open_checkpoint(path) as contents:
        stored, reasons, described = _walk(contents.payload)
        tensors = contents.tensors({str(n): tensor for n, tensor in enumerate(stored)})
        sha = hashlib.sha256("\n".join(described).encode("utf-8", "surrogatepass"))
        nbytes = 0
        for tensor in tensors.values():
            flat = tensor.contiguous().as_strided((tensor.numel(),), (1,))  # a view: a copy would be measured
            raw = flat.view(torch.uint8).numpy()
            nbytes += raw.nbytes
            sha.update(raw)
        return Reading(contents.container, sha.hexdigest(), nbytes, tuple(reasons), tuple(contents.notes))


def _walk(payload: Any) -> tuple[list[TensorSpec], list[str], list[str]]:
    """Every tensor, every reason, and a description of each value, visiting each object once."""
    stored: list[TensorSpec] = []
    reasons: list[str] = []
    described: list[str] = []
    seen: dict[int, int] = {}
    waiting = [payload]
    while waiting:
        value = waiting.pop()
        if not isinstance(value, dict | list | tuple | set | frozenset | OpaqueObject | TensorSpec | UnreadableTensor):
            described.append(value.name if isinstance(value, GlobalName) else f"{type(value).__name__} {value!r}")
            continue
        if id(value) in seen:
            described.append(f"again {seen[id(value)]}")
            continue
        seen[id(value)] = len(seen)
        if isinstance(value, TensorSpec):
            stored.append(value)
            described.append(f"tensor {value.dtype} {tuple(value.shape)}")
        elif isinstance(value, UnreadableTensor):
            reasons.append(value.reason)
            described.append(f"unreadable {value.reason}")
        else:
            parts = list(_parts(value))
            described.append(f"{type(value).__name__} {getattr(value, 'name', '')} {len(parts)}")
            waiting += reversed(parts)
    return stored, reasons, described


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, OpaqueObject):
        yield from (value.args, value.state, value.items)
    elif isinstance(value, dict):
        for pair in value.items():
            yield from pair
    elif isinstance(value, set | frozenset):
        yield from sorted(value, key=repr)
    else:
        yield from value


def limit_memory(more: int) -> None:
    """Let this process have so many bytes of address space beyond what it has; only Linux says how many that are."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        pages = int(statm.read_text(encoding="ascii").split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more,) * 2)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise `HangError` in the block when it takes more processor time than this; only in the main thread.

    What waits for something that never comes takes none: it is interrupted after `_WAITING` times as long.
    """

    def ring(number: int, frame: FrameType | None) -> None:
        raise HangError(f"longer than {seconds} s")

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, 1), (signal.SIGALRM, signal.ITIMER_REAL, _WAITING))
    before = [signal.signal(number, ring) for number, _, _ in timers]
    try:
        for _, timer, times in timers:
            signal.setitimer(timer, times * seconds)
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)
