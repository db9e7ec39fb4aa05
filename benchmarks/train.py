"""How fast the trainer is, for every method.

    python -m benchmarks.train [--methods a,b] [--data parquet:DIR] [--width 16] [--device cuda --precision bf16]

Prints a Markdown table. In one process and on one device it interleaves blocks of whole-batch updates of every method,
of the naive loop (`benchmarks.naive`), and of a square matrix product in the same precision, the ceiling; every time
is the median over the blocks, every ratio the median of the ratios within a round, because others may use the
machine. FLOPs are those of the convolutions and matrix products in one update, by the formulas of torch's
FlopCounterMode, and nothing else. Evaluation and saving, which an epoch of `coprobe train` does as well, are left out.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.naive import NaiveLoop
from benchmarks.overhead import processor
from coprobe.data import Dataset, Loader, load
from coprobe.models import Classifier, build
from coprobe.training import METHODS, Recipe, make_method
from coprobe.training.loop import TrainingLoop
from coprobe.training.regularizers import LogitStability
from coprobe.training.step import Setting

EPOCH = 50_000
NAIVE = ("fgsm-rs", "fgsm-mep")


@dataclass
class Candidate:
    """Work that is timed: `once` does it once, `flops` are those of that, `times` the seconds of each block's mean."""

    once: Callable[[], object]
    flops: float
    times: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of doing it once."""
        return statistics.median(self.times)

    def relative_to(self, other: Candidate) -> float:
        """Seconds over those of another."""
        return statistics.median(mine / its for mine, its in zip(self.times, other.times, strict=True))

    @property
    def rate(self) -> float:
        """FLOP per second."""
        return self.flops / self.seconds


def measure(candidates: list[Candidate], batches: int, repeats: int, device: torch.device) -> None:
    """Time blocks of `batches` updates, interleaved; the first round only warms up."""
    for number in range(repeats + 1):
        for candidate in candidates:
            wait(device)
            began = time.perf_counter()
            for _ in range(batches):
                candidate.once()
            wait(device)
            if number:
                candidate.times.append((time.perf_counter() - began) / batches)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
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


def products(device: torch.device, precision: str) -> list[Candidate]:
    """Square matrix products; the fastest is the ceiling."""
    size = 8192 if device.type == "cuda" else 2048
    # As cuDNN's convolutions have it.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    works: list[Callable[[], object]] = [lambda: a @ b]
    if device.type == "cpu" and precision == "32" and torch.backends.mkldnn.is_available():
        # Convolutions are oneDNN's. a @ b is MKL's, which has less than half of oneDNN's speed on AMD's processors.
        packed = a.to_mkldnn(), b.to_mkldnn()
        works.append(lambda: torch.nn.functional.linear(*packed))
    return [Candidate(work, 2.0 * size**3) for work in works]


def network(recipe: Recipe, dataset: Dataset, device: torch.device) -> Classifier:
    """The model to begin with, the same for every candidate."""
    torch.manual_seed(recipe.seed)
    assert recipe.width is not None
    model = Classifier(build(recipe.arch, width=recipe.width, num_classes=dataset.num_classes))
    return model.to(device).train()


def updates(loop: TrainingLoop) -> Iterator[object]:
    """Epoch after epoch."""
    while True:
        yield from loop.run_epoch()
        loop.end_epoch()


def ours(recipe: Recipe, dataset: Dataset, device: torch.device, *, compiled: bool) -> Candidate:
    """The trainer's loop, set up as `coprobe train` does with the method's defaults."""

    def loop(compiled: bool) -> Iterator[object]:
        method = make_method(recipe.method, {}, epsilon=recipe.eps_train / 255, seed=recipe.seed)
        terms = [LogitStability(method.default_logit_weight)] if method.default_logit_weight else []
        loader = Loader(
            dataset, recipe.batch_size, device=device, shuffle=True, augment=True, drop_last=True, channels_last=True
        )
        setting = Setting(dataset, device, recipe.batch_size, loader.padding, recipe.epochs, recipe.phases)
        model = network(recipe, dataset, device)
        model.precision = recipe.precision
        model.to(memory_format=torch.channels_last)
        return updates(TrainingLoop(recipe, model, method, terms, loader, setting, compiled=compiled))

    counted = loop(compiled=False)  # torch.compile hides the operations from the counter
    flops = count(lambda: next(counted))
    timed = loop(compiled and METHODS[recipe.method].compiles)
    return Candidate(lambda: next(timed), flops)


def naive(recipe: Recipe, dataset: Dataset, device: torch.device) -> Candidate:
    """The naive loop of the same method."""
    mep, epsilon = recipe.method == "fgsm-mep", recipe.eps_train / 255
    model = network(recipe, dataset, device)
    step = NaiveLoop(mep, model, dataset, recipe.batch_size, epsilon, recipe.lr, device).updates()
    return Candidate(lambda: next(step), count(lambda: next(step)))


def synthetic(images: int) -> Dataset:
    """Random images of CIFAR-10's shape."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (images,), generator=generator)
    return Dataset(pixels, labels, tuple("0123456789"), "synthetic", "train")


def table(own: dict[str, Candidate], naive: dict[str, Candidate], product: Candidate, batch: int) -> list[str]:
    """The results, one row per method and per naive loop."""
    rows = [
        "| method | ms per update (min – max) | s per epoch | images/s | GFLOP per update | TFLOP/s | of the ceiling "
        "| s per epoch at the ceiling | epoch relative to FGSM's (registered) | naive / ours |",
        "|---" * 10 + "|",
    ]
    for name, made in [*own.items(), *((f"{name}, naive", made) for name, made in naive.items())]:
        method = METHODS.entry(name.removesuffix(", naive"))
        replays = make_method(method.name, {}, epsilon=0).updates_per_batch
        per_epoch = EPOCH / batch * replays
        registered = f" ({method.facts['cost']:g})" if name in own else ""
        cost = f"{replays * made.relative_to(own['fgsm']):.2f}{registered}"
        ratio = f"{naive[name].relative_to(made):.2f}" if name in own and name in naive else ""
        rows.append(
            f"| {name} | {1e3 * made.seconds:.4g} ({1e3 * min(made.times):.4g} – {1e3 * max(made.times):.4g}) "
            f"| {per_epoch * made.seconds:.4g} | {batch / made.seconds:,.0f} | {made.flops / 1e9:.4g} "
            f"| {made.rate / 1e12:.3g} | {made.rate / product.rate:.0%} | {per_epoch * made.flops / product.rate:.3g} "
            f"| {cost} | {ratio} |"
        )
    return rows


def arguments_of() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--methods", default=",".join(METHODS), help="those of the naive loop and fgsm are always among them"
    )
    parser.add_argument("--data", help="spec of a data set; random images if unset")
    parser.add_argument("--images", type=int, default=10_000, help="held in memory; no influence on the table's epoch")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    parser.add_argument("--compile", action="store_true", help="for the methods that allow it")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batches", type=int, default=5, help="updates per block")
    parser.add_argument("--repeats", type=int, default=7, help="blocks, after one to warm up")
    parser.add_argument("--out", type=Path, help="file to append the table to")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    arguments = arguments_of()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    dataset = load(arguments.data, "train", limit=arguments.images) if arguments.data else synthetic(arguments.images)

    def recipe(name: str) -> Recipe:
        return Recipe(
            method=name, width=arguments.width, batch_size=arguments.batch_size, precision=arguments.precision,
            lr=0.05, schedule="constant", epochs=1000,
        )  # fmt: skip

    names = list(dict.fromkeys([*NAIVE, "fgsm", *arguments.methods.split(",")]))
    own = {name: ours(recipe(name), dataset, device, compiled=arguments.compile) for name in names}
    beside = {name: naive(recipe(name), dataset, device) for name in NAIVE}
    squares = products(device, arguments.precision)
    measure([*squares, *beside.values(), *own.values()], arguments.batches, arguments.repeats, device)
    product = max(squares, key=lambda square: square.rate)

    on_cpu = f"{arguments.threads} threads of {processor()}"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else on_cpu
    lines = [
        f"ResNet-18 of width {arguments.width}, batch {arguments.batch_size}, precision {arguments.precision} "
        f"(naive: 32){', compiled' if arguments.compile else ''},",
        f"{len(dataset)} images ({dataset.name}), epochs of {EPOCH:,};",
        f"{where}, torch {torch.__version__}; matrix product: {product.rate / 1e12:.3g} TFLOP/s",
        f"`python -m benchmarks.train {shlex.join(sys.argv[1:])}`",
        "",
        *table(own, beside, product, arguments.batch_size),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out:
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write("\n" + text)


if __name__ == "__main__":
    main()
