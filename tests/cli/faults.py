"""What can go wrong around a command, as context managers: full disks, signals, exhausted memory, lacking packages."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

from coprobe.core.files import exclusive

Fault = Callable[[], AbstractContextManager[None]]


def _patching(target: str, value: Any) -> Fault:
    @contextmanager
    def fault() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(target, value)
            yield

    return fault


def raising(target: str, error: BaseException) -> Fault:
    """Calling what stands at `target` raises `error`."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    return _patching(target, fail)


def first(target: str, act: Callable[[], object]) -> Fault:
    """`act` is called right before the first call of what stands at `target`."""

    @contextmanager
    def fault() -> Iterator[None]:
        original = resolve_name(target)
        left = [act]

        def wrapped(*arguments: Any, **options: Any) -> Any:
            if left:
                left.pop()()
            return original(*arguments, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(target, wrapped)
            yield

    return fault


def signalled(number: int, target: str) -> Fault:
    """A signal comes right before the first call of what stands at `target`."""
    return first(target, lambda: os.kill(os.getpid(), number))


def removed(directory: str, target: str) -> Fault:
    """Somebody removes a directory right before the first call of what stands at `target`."""
    return first(target, lambda: shutil.rmtree(directory))


def unwritable(name: str, number: int = errno.ENOSPC) -> Fault:
    """Writing a file of this name fails; with ENOSPC as on a disk that is full."""
    replace = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if Path(target).name == name:
            raise OSError(number, os.strerror(number))
        return replace(self, target)

    return _patching("pathlib.Path.replace", fail)


def unreadable(name: str) -> Fault:
    """A file that this user may not read, also for root."""
    access = os.access
    return _patching("os.access", lambda path, mode: Path(path).name != name and access(path, mode))


def without(module: str) -> Fault:
    """A package is not installed."""

    @contextmanager
    def fault() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            yield

    return fault


def present(kind: str) -> Fault:
    """The machine has GPUs of this kind: `mps`, or two of `cuda`."""
    if kind == "mps":
        return _patching("torch.backends.mps.is_available", lambda: True)
    return _patching("torch.cuda.device_count", lambda: 2)


def inside(directory: str) -> Fault:
    """The command is called from another directory."""

    @contextmanager
    def fault() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(directory)
            yield

    return fault


def held(directory: str) -> Fault:
    """Another process works in a run directory; locks are by open file, so that this one will do."""
    return lambda: exclusive(directory)
