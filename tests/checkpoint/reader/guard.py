"""A process that opens the corpus under an audit hook: `python -m tests.checkpoint.reader.guard MODE FOLDER [code]`.

MODE `read` opens each file with the reader under test, in forks that measure memory and time; `unsafe`
opens those that run code with a bare `torch.load`, as a control of the guards: what they don't catch there, they
would not catch anywhere. With `code`, only files that name code are opened. It writes one JSON object a file.
An audit hook can't be removed, hence the process of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import takewhile
from pathlib import Path
from subprocess import run
from tempfile import TemporaryDirectory
from typing import Any, TextIO

import torch

from coprobe.errors import InputError
from tests.checkpoint.reader import corpus, writers
from tests.checkpoint.reader import opcodes as op
from tests.checkpoint.reader.corpus import Entry, Trap
from tests.checkpoint.reader.reading import HangError, at_most, limit_memory, read_all

ROOT = Path(__file__).resolve().parents[3]
#: Events that say nothing about a file: what the interpreter does to look at objects and frames.
_HARMLESS = ("builtins.id", "object.__getattr__", "sys._getframe", "sys._getframemodulename")
_SECONDS, _UNTIL_KILLED = 10, 30
_ADDRESSES = 4 << 30
_QUICKLY_HASHED = 64 << 20
#: So many small files share a fork, until one of them has grown it so much that others could hide behind that.
_GROUP, _UNSEEN = 60, 16 << 20


@dataclass
class Report:
    """What a file did.

    Attributes:
        outcome: `refused`, `inert`, `unreadable`, or `escaped` for what is neither a reading nor an `InputError`.
        message: of the error, or why a tensor was not read.
        events: audit events beyond opening the file itself for reading.
        sprung: its code ran.
        touched: the file, or the folder it is in, is not as before.
        size, nbytes: of the file, and of the tensors that came out of it.
        seconds: of processor time that it took.
        growth: of the largest resident memory, in bytes.
    """

    name: str
    outcome: str = ""
    message: str = ""
    events: list[str] = field(default_factory=list)
    sprung: bool = False
    touched: bool = False
    size: int = 0
    nbytes: int = 0
    seconds: float = 0.0
    growth: int = 0


@cache
def reports(mode: str, *more: str, unsafe_default: bool = False) -> dict[str, Report]:
    """Run this module in a child process; what each file did, by name. The corpus is opened once per test process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if unsafe_default:
        environment["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.checkpoint.reader.guard", mode, folder, *more]
        done = run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [Report(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]
    return {report.name: report for report in found}


class Watch:
    """Notes audit events while it is on."""

    def __init__(self) -> None:
        self.on = False
        self.events: list[str] = []
        self.path = ""
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on or event in _HARMLESS:
            return
        if event == "open" and str(args[0]) == self.path and not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        self.events.append(f"{event} {args!r}"[:300])

    def during(self, path: Path, work: Callable[[], None]) -> list[str]:
        self.events, self.path, self.on = [], str(path), True
        try:
            work()
        finally:
            self.on = False
        return self.events


def _state(trap: Trap) -> object:
    """The file and what is beside it; the content as far as it is quickly told."""
    listing = sorted(str(path) for path in trap.path.parent.iterdir())
    if not trap.path.is_file() or trap.path.stat().st_size > _QUICKLY_HASHED:
        return listing
    return listing, trap.path.stat().st_mtime_ns, hashlib.sha256(trap.path.read_bytes()).hexdigest()


def _read(trap: Trap, report: Report) -> None:
    try:
        with at_most(_SECONDS):
            reading = read_all(trap.path)
        report.outcome, report.nbytes = "unreadable" if reading.reasons else "inert", reading.nbytes
        report.message = "; ".join(reading.reasons)
    except InputError as error:
        report.outcome, report.message = "refused", str(error)
    except (Exception, HangError) as error:
        report.outcome, report.message = "escaped", repr(error)


def _load_unsafely(trap: Trap, report: Report) -> None:
    try:
        torch.load(trap.path)
        report.outcome = "loaded"
    except BaseException as error:
        report.outcome, report.message = "failed", repr(error)


def _warm_up(folder: Path, work: Callable[[Trap, Report], None]) -> None:
    """Import and look up what the first files of each kind need, so that it isn't taken for what a file did."""
    "\x1b".encode("unicode_escape")
    honest = {
        "zip": writers.zipped(op.named(w=op.vector(), text=op.text("\ud800"), real=b"F1.0\n", name=b"V\\u0041\n")),
        "legacy": writers.legacy(op.named(w=op.legacy_vector())),
        "safetensors": writers.safetensors({"w": writers.described()}),
        "bad": writers.safetensors(b"{"),
        "text": b"x",
    }
    for name, data in honest.items():
        entry = Entry(f"warm-{name}", lambda trap, data=data: data)
        work(corpus.build(folder / name, [entry])[entry.name], Report(entry.name))


def _read_in_a_fork(group: list[Entry], traps: dict[str, Trap], watch: Watch, honest: Path) -> list[Report]:
    """Read files in a fork, so that their memory can be measured and a crash survived; perhaps only the first few."""
    source, sink = os.pipe()
    child = os.fork()
    if not child:
        os.close(source)
        with os.fdopen(sink, "w") as out:
            _read_each(group, traps, watch, honest, out)
        os._exit(0)
    os.close(sink)
    lines: list[str] = []
    try:
        with os.fdopen(source) as answers:
            while len(lines) < len(group):
                with at_most(_UNTIL_KILLED):
                    line = answers.readline()
                if not line:
                    break
                lines.append(line)
    except HangError:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    found = [Report(**json.loads(line)) for line in lines]
    if status and len(found) < len(group):
        found.append(Report(group[len(found)].name, "escaped", f"died with status {status}"))
    return found


def _read_each(group: list[Entry], traps: dict[str, Trap], watch: Watch, honest: Path, out: TextIO) -> None:
    read_all(honest)  # touches the pages of the code, which a fork has to map anew
    limit_memory(_ADDRESSES)
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for entry in group:
        report, trap, start = Report(entry.name), traps[entry.name], time.process_time()
        events = watch.during(trap.path, lambda trap=trap, report=report: _read(trap, report))
        report.seconds = time.process_time() - start
        report.growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit
        report.events = events[:20]
        out.write(json.dumps(asdict(report)) + "\n")
        out.flush()
        if report.growth > _UNSEEN:
            break


def _load_each_unsafely(group: list[Entry], traps: dict[str, Trap], watch: Watch) -> list[Report]:
    found = []
    for entry in group:
        report, trap = Report(entry.name), traps[entry.name]
        report.events = watch.during(trap.path, lambda trap=trap, report=report: _load_unsafely(trap, report))
        found.append(report)
    return found


def main(mode: str, folder: Path, only: str = "") -> None:
    warnings.simplefilter("ignore")
    waiting = [entry for entry in corpus.entries() if entry.runs or (mode == "read" and (entry.code or not only))]
    _warm_up(folder / "warm", {"read": _read, "unsafe": _load_unsafely}[mode])
    honest = folder / "honest"
    honest.write_bytes(writers.zipped(op.named(w=op.vector())))
    watch = Watch()
    while waiting:
        light = list(takewhile(lambda entry: not entry.heavy, waiting))
        group = light[:_GROUP] or waiting[:1]
        traps = corpus.build(folder / "hot", group)
        before = {name: _state(trap) for name, trap in traps.items()}
        if mode == "read":
            found = _read_in_a_fork(group, traps, watch, honest)
        else:
            found = _load_each_unsafely(group, traps, watch)
        for report in found:
            trap = traps[report.name]
            report.sprung, report.touched = trap.sprung, _state(trap) != before[report.name]
            report.size = trap.path.stat().st_size if trap.path.is_file() else 0
            sys.stdout.write(json.dumps(asdict(report)) + "\n")
        waiting = waiting[len(found) :]
        shutil.rmtree(folder / "hot")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
