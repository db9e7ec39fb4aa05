"""The corpus of hostile and broken files: what each is, how it is built, and what the reader must make of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Trap:
    """Where one file of the corpus is built, and what its code would do if it ran.

    Attributes:
        path: of the file.
        sentinel: a file that its code creates.
        decoy: a folder that its code removes.
    """

    path: Path
    sentinel: Path
    decoy: Path

    @property
    def command(self) -> str:
        """For a shell."""
        return f"touch {self.sentinel}"

    @property
    def code(self) -> str:
        """For Python."""
        return f"open({str(self.sentinel)!r}, 'w').close()"

    @property
    def sprung(self) -> bool:
        """Whether the code ran."""
        return self.sentinel.exists() or not self.decoy.exists()


@dataclass(frozen=True)
class Entry:
    """A file of the corpus.

    Attributes:
        name: of the file.
        build: gives its bytes, or puts it at `trap.path` itself and gives None.
        expect: "refused" (InputError), "inert" (it opens, its names are labels, its tensors can be read), or
            "unreadable" (it opens, and a tensor of it is not read, for a reason that is given), or two of them
            where either is right.
        says: what the error or the reason must contain, whatever the case of its letters.
        runs: an unsafe loader runs its code here and now (the control does this).
        code: it names functions that run code, so a scanner must flag it.
        heavy: it is large, or made to cost much.
    """

    name: str
    build: Callable[[Trap], bytes | None]
    expect: str = "refused"
    says: str = ""
    runs: bool = False
    code: bool = False
    heavy: bool = False


def constant(data: bytes) -> Callable[[Trap], bytes]:
    """A builder of a file that is the same wherever it is built."""
    return lambda trap: data


def entries() -> list[Entry]:
    """The corpus, heavy files last."""
    from tests.checkpoint.reader import (
        hostile_archives,
        hostile_bombs,
        hostile_code,
        hostile_containers,
        hostile_headers,
        hostile_pickles,
        hostile_tensors,
    )

    modules = (
        hostile_code,
        hostile_pickles,
        hostile_tensors,
        hostile_archives,
        hostile_headers,
        hostile_containers,
        hostile_bombs,
    )
    found = [entry for module in modules for entry in module.entries()]
    found.sort(key=lambda entry: entry.heavy)
    assert len({entry.name for entry in found}) == len(found), "two files of one name"
    return found


def build(folder: Path, chosen: list[Entry]) -> dict[str, Trap]:
    """Build each file in a folder of its own, beside its sentinel and its decoy."""
    traps = {}
    for number, entry in enumerate(chosen):
        home = folder / f"{number:03}"
        trap = Trap(home / "file" / entry.name, home / "sentinel", home / "decoy")
        trap.path.parent.mkdir(parents=True)
        trap.decoy.mkdir()
        data = entry.build(trap)
        if data is not None:
            trap.path.write_bytes(data)
        traps[entry.name] = trap
    return traps
