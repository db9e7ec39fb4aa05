"""Mutation fuzz of the reader: `python -m tests.checkpoint.reader.fuzz --mutants 1000000 --seed 0 --jobs 1`.

Each mutant is one honest file with a few changes, either of its bytes, or (`deep`) of what its checksums and lengths
protect, with these put right again. It is opened and all its tensors are read. Mutant n of a seed is always the
same, so a range can be repeated or continued (`--start`). The work is done in a child process, which is started
again behind the mutant that kills it.

`--flips FILE` instead changes every single bit of a file in turn, and counts how many changes go unseen.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from coprobe.errors import InputError
from tests.checkpoint.reader.reading import HangError, at_most, limit_memory, read_all
from tests.checkpoint.reader.seeds import Seed, seeds

ROOT = Path(__file__).resolve().parents[3]
_CHUNK = 100
_HANG = 1.0
_SILENCE = 60.0 + _CHUNK * _HANG
_ADDRESSES = 4 << 30
_BOUNDARIES = (0, 1, 2**7 - 1, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)
_OPCODES = bytes(range(0x80, 0x99)) + b"().0123BCFGIJKLMNPQRSTUVX]abcdeghijlopqrstu}"


@dataclass
class Tally:
    """What became of some mutants.

    Attributes:
        counts: by seed file, layer and outcome: `unchanged` (no mutant after all), `refused`, `same`, `other` (read,
            with other content), `escaped` (no `InputError`, or one that is no printable line), `hang`, `crash`.
        faults: mutants of the last three outcomes, and what happened.
        slowest: seconds of processor time, and which mutant.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)
    slowest: tuple[float, int] = (0.0, -1)

    def add(self, other: Tally) -> None:
        self.counts.update(other.counts)
        self.faults.update(other.faults)
        self.slowest = max(self.slowest, tuple(other.slowest))

    def of(self, outcome: str, name: str = "") -> int:
        """How many mutants ended so, of all or of those seed files and layers whose label begins with `name`."""
        ended = {label: n for label, n in self.counts.items() if label.rpartition(" ")[2] == outcome}
        return sum(n for label, n in ended.items() if label.startswith(name))


# Mutations: each changes a buffer in place.


def _flip(rng: random.Random, data: bytearray, others: list[bytes]) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(rng: random.Random, data: bytearray, others: list[bytes]) -> None:
    data[rng.randrange(len(data))] = rng.randrange(256)


def _opcode(rng: random.Random, data: bytearray, others: list[bytes]) -> None:
    data[rng.randrange(len(data))] = rng.choice(_OPCODES)


def _delete(rng: random.Random, data: bytearray, others: list[bytes]) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 1, 2, 4, 8, 64))]


def _insert(rng: random.Random, data: bytearray, others: list[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice((1, 1, 2, 4, 8, 64)))


def _copy(rng: random.Random, data: bytearray, others: list[bytes]) -> None:
    source, target, count = rng.randrange(len(data)), rng.randrange(len(data) + 1), rng.choice((1, 4, 16, 128))
    piece = data[source : source + count]
    data[target : target + (len(piece) if rng.random() < 0.5 else 0)] = piece


def _truncate(rng: random.Random, data: bytearray, others: list[bytes]) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _splice(rng: random.Random, data: bytearray, others: list[bytes]) -> None:
    other = rng.choice(others)
    at, source, count = rng.randrange(len(data) + 1), rng.randrange(len(other)), rng.randrange(1, 300)
    data[at : at + rng.choice((0, count))] = other[source : source + count]


def _boundary(rng: random.Random, data: bytearray, others: list[bytes]) -> None:
    width = rng.choice((1, 2, 4, 8))
    at = rng.randrange(len(data))
    value = (rng.choice(_BOUNDARIES) + rng.choice((-1, 0, 0, 1))) % 2 ** (8 * width)
    data[at : at + width] = value.to_bytes(width, rng.choice(("little", "little", "big")))


_MUTATIONS: list[Callable[[random.Random, bytearray, list[bytes]], None]] = [
    *(_flip, _set, _opcode, _opcode, _delete, _insert, _copy, _truncate, _splice, _boundary, _boundary),
]


def mutated(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """The bytes after one to four mutations."""
    buffer = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if buffer:
            rng.choice(_MUTATIONS)(rng, buffer, others)
    return bytes(buffer)


class Fuzzer:
    """Makes mutants and reads them from one file."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed, self.path = seed, folder / "mutant"
        self.seeds = seeds(folder)
        self.others = [part for one in self.seeds for part in one.parts]
        self.expected = {one.name: self._digest(one.data) for one in self.seeds}

    def _digest(self, data: bytes) -> str:
        self.path.write_bytes(data)
        return read_all(self.path).digest

    def mutant(self, number: int) -> tuple[Seed, str, bytes]:
        """Its seed file, its layer (`plain` or `deep`) and its bytes."""
        rng = random.Random((self.seed << 40) + number)
        one = self.seeds[number % len(self.seeds)]
        if len(one.parts) > 1 and rng.random() < 0.5:
            place = rng.randrange(len(one.parts)) if rng.random() < 0.3 else 0
            parts = list(one.parts)
            parts[place] = mutated(rng, parts[place], self.others)
            return one, "deep", one.join(parts)
        return one, "plain", mutated(rng, one.data, self.others)

    def outcome(self, one: Seed, data: bytes) -> tuple[str, str]:
        """What the reader makes of these bytes, and why if that is a fault."""
        if data == one.data:
            return "unchanged", ""
        self.path.write_bytes(data)
        try:
            with at_most(_HANG):
                return "same" if read_all(self.path).digest == self.expected[one.name] else "other", ""
        except InputError as error:
            text = str(error)
            if len(text) - len(str(self.path)) > 290 or not text.isprintable():
                return "escaped", f"message: {text[:300]!r}"
            return "refused", ""
        except HangError as error:
            return "hang", repr(error)
        except Exception as error:
            return "escaped", repr(error)[:300]

    def tally(self, numbers: Iterable[int]) -> Tally:
        found = Tally()
        for number in numbers:
            one, layer, data = self.mutant(number)
            start = time.process_time()
            outcome, why = self.outcome(one, data)
            found.slowest = max(found.slowest, (time.process_time() - start, number))
            found.counts[f"{one.name} {layer} {outcome}"] += 1
            if why:
                found.faults[str(number)] = f"{one.name} {layer} {outcome}: {why}"
        return found


# The campaign: a child does the work and says how far it is, its parent starts it again if it dies.


def _folder() -> str | None:
    """Where files are kept in memory, if there is such a place."""
    shared = "/dev/shm"
    return shared if os.access(shared, os.W_OK) else None


def _work(start: int, stop: int, seed: int, skip: set[int], marker: Path) -> None:
    torch.set_num_threads(1)
    limit_memory(_ADDRESSES)
    with TemporaryDirectory(dir=_folder()) as folder, marker.open("r+b", buffering=0) as mark:
        fuzzer = Fuzzer(seed, Path(folder))
        for first in range(start, stop, _CHUNK):
            total = Tally()
            for number in range(first, min(first + _CHUNK, stop)):
                if number not in skip:
                    mark.seek(0)
                    mark.write(b"%20d" % number)
                    total.add(fuzzer.tally([number]))
            sys.stdout.write(json.dumps(vars(total)) + "\n")
            sys.stdout.flush()


def _run_range(start: int, stop: int, seed: int, total: Tally) -> None:
    skip: set[int] = set()
    with TemporaryDirectory() as folder:
        marker = Path(folder) / "marker"
        while start < stop:
            marker.write_bytes(b"%20d" % start)
            start += _CHUNK * _run_child(start, stop, seed, skip, marker, total)
            if start < stop:
                dead = int(marker.read_bytes())
                if dead in skip:
                    raise RuntimeError(f"the fuzzer itself dies at mutant {dead}")
                skip.add(dead)
                total.counts["? ? crash"] += 1
                total.faults[str(dead)] = "crash, or a hang that no signal ends"


def _run_child(start: int, stop: int, seed: int, skip: set[int], marker: Path, total: Tally) -> int:
    """Number of chunks that a child has done before it ended or was ended."""
    work = [str(start), str(stop), str(seed), str(marker), ",".join(map(str, skip)) or "-1"]
    command = [sys.executable, "-m", "tests.checkpoint.reader.fuzz", "--work", *work]
    done = 0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        while select.select([child.stdout], [], [], _SILENCE)[0]:
            line = child.stdout.readline()
            if not line:
                break
            found = json.loads(line)
            total.add(Tally(Counter(found["counts"]), found["faults"], found["slowest"]))
            done += 1
        else:
            child.kill()
    if child.returncode > 0:
        raise RuntimeError("the fuzzer itself failed; its error is above")
    return done


def campaign(mutants: int, *, seed: int = 0, start: int = 0, jobs: int = 1, progress: bool = False) -> Tally:
    """Read mutants `start` to `start + mutants` of a seed."""
    totals = [Tally() for _ in range(jobs)]
    bounds = [start + mutants * job // jobs for job in range(jobs + 1)]
    begin = time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(_run_range, *bounds[job : job + 2], seed, totals[job]) for job in range(jobs)]
        while wait(running, timeout=10).not_done:
            if progress:
                done = sum(total.counts.total() for total in totals)
                faults = sum(len(total.faults) for total in totals)
                sys.stderr.write(
                    f"{done:,} of {mutants:,} mutants, {faults} faults, {time.monotonic() - begin:,.0f} s\n"
                )
        for future in running:
            future.result()
    whole = Tally()
    for total in totals:
        whole.add(total)
    return whole


def flips(data: bytes, bits: Iterable[int], folder: Path) -> Counter[str]:
    """How a file with one changed bit is taken, counted by outcome."""
    path = folder / "flipped"
    path.write_bytes(data)
    digest = read_all(path).digest
    counts: Counter[str] = Counter()
    for bit in bits:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            counts["same" if read_all(path).digest == digest else "other"] += 1
        except InputError:
            counts["refused"] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--flips", type=Path)
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        start, stop, seed, marker, skip = options.work
        _work(int(start), int(stop), int(seed), set(map(int, skip.split(","))), Path(marker))
        return
    if options.flips:
        data = options.flips.read_bytes()
        with TemporaryDirectory(dir=_folder()) as folder:
            sys.stdout.write(f"{dict(flips(data, range(8 * len(data)), Path(folder)))}\n")
        return
    begin = time.monotonic()
    total = campaign(options.mutants, seed=options.seed, start=options.start, jobs=options.jobs, progress=True)
    for label, count in sorted(total.counts.items()):
        sys.stdout.write(f"{count:9,}  {label}\n")
    for number, fault in sorted(total.faults.items(), key=lambda item: int(item[0])):
        sys.stdout.write(f"mutant {number}: {fault}\n")
    sys.stdout.write(
        f"{total.counts.total():,} mutants in {time.monotonic() - begin:,.0f} s, "
        f"slowest {total.slowest[0]:.3f} s (mutant {total.slowest[1]})\n"
    )
    sys.exit(bool(total.faults))


if __name__ == "__main__":
    main()
