"""How work is timed and reported: interleaved in one process, every ratio taken within a round.

Others may use the machine, so a time is the median over the rounds, and a ratio the median of the ratios of one round
each. FLOPs are those of the convolutions and matrix products, by the formulas of torch's FlopCounterMode.
"""

from __future__ import annotations

import importlib.metadata
import math
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from coprobe.core.engine import products_in
from coprobe.fast.choice import processor


@dataclass
class Candidate:
    """Work that is timed.

    Args:
        once: does it once.
        flops: those of doing it once.
        missing: why it can't be done; empty if it can.
        times: the seconds of each block's mean.
    """

    once: Callable[[], object]
    flops: float = 0.0
    missing: str = ""
    times: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of doing it once."""
        return statistics.median(self.times)

    def relative_to(self, other: Candidate) -> float:
        """Seconds over those of another; NaN if either is missing."""
        if self.missing or other.missing:
            return math.nan
        return statistics.median(mine / its for mine, its in zip(self.times, other.times, strict=True))

    @property
    def rate(self) -> float:
        """FLOP per second."""
        return self.flops / self.seconds

    @property
    def spread(self) -> str:
        """Median and range in seconds."""
        return spread(self.times, ".4g")


def spread(values: Sequence[float], form: str) -> str:
    """Median and range, each in a format."""
    median, least, most = (format(of(values), form) for of in (statistics.median, min, max))
    return f"{median} ({least} – {most})"


def measure(candidates: Iterable[Candidate], repeats: int, device: torch.device | None = None, block: int = 1) -> None:
    """Time blocks of doing each so many times, interleaved; the first round only warms up."""
    able = [candidate for candidate in candidates if not candidate.missing]
    for number in range(repeats + 1):
        for candidate in able:
            wait(device)
            began = time.perf_counter()
            for _ in range(block):
                candidate.once()
            wait(device)
            if number:
                candidate.times.append((time.perf_counter() - began) / block)


def wait(device: torch.device | None) -> None:
    """Until the device has done what it was given."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


class FlopCounter(TorchDispatchMode):
    """Adds up FLOPs; FlopCounterMode fails where autograd.grad goes to a tensor that a module was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def count(once: Callable[[], object]) -> float:
    """FLOPs of doing it once."""
    with FlopCounter() as counter:
        once()
    return float(counter.total)


def torchs(precision: str, device: torch.device) -> str:
    """What torch makes of float32 unless it is told otherwise: TF32 in the convolutions on a GPU."""
    return "tf32" if precision == "32" and device.type == "cuda" else precision


def products(device: torch.device, precision: str) -> list[Candidate]:
    """Square matrix products in `32`, `tf32` or `bf16`; the fastest is the ceiling, see `ceiling`."""
    size = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)

    def product() -> None:
        with products_in(precision):
            torch.matmul(a, b)

    works: list[Callable[[], object]] = [product]
    if device.type == "cpu" and precision == "32" and torch.backends.mkldnn.is_available():
        # Convolutions are oneDNN's. a @ b is MKL's, which has less than half of oneDNN's speed on AMD's processors.
        packed = a.to_mkldnn(), b.to_mkldnn()
        works.append(lambda: torch.nn.functional.linear(*packed))
    return [Candidate(work, 2.0 * size**3) for work in works]


def profiled(once: Callable[[], object], device: torch.device, rows: int = 6) -> tuple[list[str], float]:
    """A table of the operations that take the most time, and the seconds of doing it once without being looked at."""
    plain = Candidate(once)
    measure([plain], 5, device)
    on_gpu = device.type == "cuda"
    with torch.profiler.profile(activities=[getattr(ProfilerActivity, "CUDA" if on_gpu else "CPU")]) as profile:
        once()
        wait(device)
    took = {
        event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total
        for event in profile.key_averages()
    }
    whole, largest = sum(took.values()), sorted(took, key=lambda key: -took[key])[:rows]
    shares = [f"| `{key}` | {took[key] / whole:.1%} |" for key in largest]
    return ["| operation | share of the time |", "|---|---|", *shares], plain.seconds


def ceiling(squares: Sequence[Candidate]) -> float:
    """FLOP per second of the fastest product that was measured."""
    return max(square.rate for square in squares)


def table(
    candidates: dict[str, Candidate],
    *,
    beside: Sequence[str] = (),
    images: int = 0,
    ceilings: dict[str, float] | None = None,
) -> list[str]:
    """A row for each.

    Args:
        candidates: by what their rows are called.
        beside: those whose time is held against that of every row, as "X / this": how often as fast this is.
        images: that one candidate works on; 0 leaves out images per second.
        ceilings: by the name of a candidate, FLOP per second that the device can do in that one's precision.
    """
    headings = ["what", "seconds (min – max)", *["images/s"] * bool(images), *["of the ceiling"] * bool(ceilings)]
    headings += [f"{name} / this" for name in beside]
    rows = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for name, candidate in candidates.items():
        cells = [name, candidate.missing or candidate.spread]
        cells += [""] * (len(headings) - 2) if candidate.missing else []
        if not candidate.missing:
            cells += [f"{images / candidate.seconds:,.1f}"] * bool(images)
            if ceilings:
                cells.append(f"{candidate.rate / ceilings[name]:.0%}" if name in ceilings else "")
            cells += [_ratio(candidates[other].relative_to(candidate)) for other in beside]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


@dataclass(frozen=True)
class Bar:
    """Something that shall hold, with the number that was measured; NaN where it could not be.

    Args:
        claim: in words, without the number.
        measured: the number.
        least: the smallest that it may be.
        most: the largest that it may be.
    """

    claim: str
    measured: float
    least: float = -math.inf
    most: float = math.inf

    @property
    def row(self) -> str:
        """Of the table that `bars` makes."""
        wanted = f"≥ {self.least:g}" if self.least > -math.inf else f"≤ {self.most:g}"
        met = "" if math.isnan(self.measured) else "met" if self.least <= self.measured <= self.most else "**missed**"
        return f"| {self.claim} | {wanted} | {_ratio(self.measured) or 'not measured'} | {met} |"


def bars(them: Iterable[Bar]) -> list[str]:
    """What was asked for and what came out."""
    return ["| bar | asked for | measured | |", "|---|---|---|---|", *(bar.row for bar in them)]


def _ratio(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"


def absent(package: str) -> str:
    """That the package is not installed, for `Candidate.missing`; empty if it is."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    return ""


def version(package: str) -> str:
    """Name and version of a package, or that it is not installed."""
    return f"{package} {absent(package) or importlib.metadata.version(package)}"


def machine(device: torch.device) -> str:
    """Where it was measured."""
    cpu = f"{torch.get_num_threads()} threads of {processor()}"
    return f"{torch.cuda.get_device_name(device)}, {cpu}" if device.type == "cuda" else cpu


def shown(text: str) -> str:
    """A word of a command line without the folders of this machine: of an absolute path, the last two names."""
    return re.sub(r"(^|[:=])/(?:[^/]+/)*([^/]+/[^/]+)$", r"\1\2", text)


def command() -> str:
    """How this was called."""
    name = Path(sys.argv[0]).stem
    return f"`python -m benchmarks.{name} {shlex.join(map(shown, sys.argv[1:]))}`"


def origin(device: torch.device, *packages: str) -> list[str]:
    """Where something was measured, with which versions, and how it was called."""
    return [f"{machine(device)}; {', '.join(map(version, ('torch', *packages)))}:", command(), ""]


def publish(title: str, lines: Sequence[str], out: Path | None) -> None:
    """Print, and add to a file, which begins with the title."""
    text = "\n".join(lines) + "\n"
    print(text)
    if out:
        start = "" if out.exists() else f"# {title}\n"
        with out.open("a", encoding="utf-8") as file:
            file.write(f"{start}\n{text}")
