"""How fast the trainer is, for every method.

    python -m benchmarks.train [--methods a,b] [--data parquet:DIR] [--width 16] [--device cuda --precision bf16]

Prints a Markdown table. In one process and on one device it interleaves blocks of whole-batch updates of every method,
of the naive loop (`benchmarks.naive`), and of a square matrix product in the same precision, the ceiling; see
`benchmarks.timing` for times, ratios and FLOPs. Evaluation and saving, which an epoch of `coprobe train` does as well,
are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.naive import NaiveLoop
from benchmarks.subject import synthetic
from benchmarks.timing import (
    Candidate,
    command,
    count,
    machine,
    measure,
    products,
    publish,
    shown,
    spread,
    torchs,
    version,
)
from coprobe.data import Dataset, Loader, load
from coprobe.models import Classifier, build
from coprobe.training import METHODS, Recipe, make_method
from coprobe.training.loop import TrainingLoop
from coprobe.training.regularizers import LogitStability
from coprobe.training.update import TrainingContext

EPOCH = 50_000
NAIVE = ("fgsm-rs", "fgsm-mep")


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
        method = make_method(recipe.method, {}, epsilon=recipe.eps_train / 255)
        terms = [LogitStability(method.default_logit_weight)] if method.default_logit_weight else []
        loader = Loader(
            dataset, recipe.batch_size, device=device, shuffle=True, augment=True, drop_last=True, channels_last=True
        )
        context = TrainingContext(dataset, device, recipe.batch_size, loader.padding, recipe.epochs, recipe.phases)
        model = network(recipe, dataset, device)
        model.precision = recipe.precision
        model.to(memory_format=torch.channels_last)
        return updates(TrainingLoop(recipe, model, method, terms, loader, context, compiled=compiled))

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
            f"| {name} | {spread([1e3 * seconds for seconds in made.times], '.4g')} "
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
    squares = products(device, torchs(arguments.precision, device))
    measure([*squares, *beside.values(), *own.values()], arguments.repeats, device, block=arguments.batches)
    product = max(squares, key=lambda square: square.rate)

    lines = [
        f"ResNet-18 of width {arguments.width}, batch {arguments.batch_size}, precision {arguments.precision} "
        f"(naive: 32){', compiled' if arguments.compile else ''},",
        f"{len(dataset)} images ({shown(dataset.name)}), epochs of {EPOCH:,};",
        f"{machine(device)}, {version('torch')}; matrix product: {product.rate / 1e12:.3g} TFLOP/s",
        command(),
        "",
        *table(own, beside, product, arguments.batch_size),
    ]
    publish("How fast training is", lines, arguments.out)


if __name__ == "__main__":
    main()
