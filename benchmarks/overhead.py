"""What probing costs beyond its attack, and how long the command line takes to answer.

    python -m benchmarks.overhead --checkpoint CKPT --data parquet:DIR [--images 256] [--repeats 5]

Prints a Markdown table: the median over the repeats of (a) PGD-10 and two forward passes, written plainly, and
(b) `Probe.activations` at the nodes A…E on the same images, interleaved in one process, and of `coprobe --help`
as a whole process. Before timing it checks that both see the same adversarial images.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import coprobe
from coprobe.attacks import parse
from coprobe.attacks.examples import AdversarialExamples
from coprobe.data import load
from coprobe.probe import Probe

EPSILON = 16 / 255
BATCH = 128


def seconds(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def row(name: str, times: list[float], base: float | None = None) -> str:
    """A row of the table: median, spread, ratio to `base`."""
    middle = statistics.median(times)
    ratio = f"{middle / base:.3f}" if base else ""
    return f"| {name} | {middle:.3f} | {min(times):.3f} – {max(times):.3f} | {ratio} |"


def processor() -> str:
    """The processor's name, where the system says it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()

    checkpoint = coprobe.load(arguments.checkpoint)
    dataset = load(arguments.data, limit=arguments.images)
    probe = Probe(checkpoint, dataset, epsilon=EPSILON, batch_size=BATCH)
    attack = parse("pgd:10:rule=always", EPSILON)

    def plain() -> list[torch.Tensor]:
        crafted = []
        for batch in AdversarialExamples(probe.model, dataset, [attack], batch_size=BATCH):
            x, x_adv = batch.images["clean"], batch.images[attack.spec]
            with torch.no_grad():
                probe.model(x)
                probe.model(x_adv)
            crafted.append(x_adv)
        return crafted

    assert all(torch.equal(a, b) for a, b in zip(plain(), plain(), strict=True)), "the attack is not deterministic"
    probe.activations(attack=attack.spec)
    pairs = [(seconds(plain), seconds(lambda: probe.activations(attack=attack.spec))) for _ in range(arguments.repeats)]
    bare, probed = map(list, zip(*pairs, strict=True))
    command = [sys.executable, "-m", "coprobe", "--help"]
    start_up = [seconds(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(9)]

    print(f"{arguments.images} images, {checkpoint.arch} {checkpoint.arch_args}, batch {BATCH}, float32,")
    print(f"{torch.get_num_threads()} threads of {processor()}, torch {torch.__version__}:")
    made = f"--checkpoint {Path(arguments.checkpoint).name} --data {dataset.name}"
    print(f"`python -m benchmarks.overhead {made} --images {arguments.images} --repeats {arguments.repeats}`\n")
    print("| what | median s | min – max | ratio |\n|---|---|---|---|")
    base = statistics.median(bare)
    print(row("PGD-10 (every image, every step) and two forward passes", bare, base))
    print(row("`Probe.activations` at A…E, the same attack", probed, base))
    print(row("`coprobe --help`, whole process", start_up))


if __name__ == "__main__":
    main()
