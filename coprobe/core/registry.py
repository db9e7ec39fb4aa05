"""One table per kind of thing that can be added (attacks, methods, architectures, datasets, selectors)."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from coprobe.errors import unknown

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A registered thing: its name, the object, one line about it, its source, and facts for tests and tables."""

    name: str
    value: T
    summary: str
    source: str
    facts: Mapping[str, Any] = field(default_factory=dict)


class Registry(Generic[T]):
    """Names to things, in the order of registration. `kind` says in errors what the names name."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry[T]] = {}

    def add(self, name: str, value: T, *, summary: str, source: str = "", **facts: Any) -> None:
        """Register `value`; a name that is taken raises `ValueError`, so that nothing is replaced unseen."""
        if name in self._entries:
            raise ValueError(f"{self.kind} '{name}' is registered twice")
        self._entries[name] = Entry(name, value, summary, source, facts)

    def register(self, name: str, *, summary: str, source: str = "", **facts: Any) -> Callable[[T], T]:
        """`add` as a decorator."""

        def decorate(value: T) -> T:
            self.add(name, value, summary=summary, source=source, **facts)
            return value

        return decorate

    def __getitem__(self, name: str) -> T:
        return self.entry(name).value

    def entry(self, name: str) -> Entry[T]:
        """The entry called `name`; raises `InputError` with the nearest names."""
        if name not in self._entries:
            raise unknown(self.kind, name, self._entries)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self) -> list[Entry[T]]:
        """Every entry, in the order of registration."""
        return list(self._entries.values())


def discover(package: str) -> None:
    """Import every module of `package`, so that a new file in it registers itself."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
