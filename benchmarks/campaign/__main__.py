"""Trains and measures the runs of plan.csv, in its order; can be stopped and started again at any moment.

    python -m benchmarks.campaign --scale paper --cifar10 parquet:DIR --device cuda --jobs 4 --minutes 9
    python -m benchmarks.campaign --scale small --cifar10 parquet:DIR --only mep-12,fd-b200-12,origin

Weights stay in runs/campaign/SCALE/RUN, where an interrupted training goes on. What is kept goes to
benchmarks/campaign/results/SCALE/RUN: recipe.json (every knob, provenance, outcome), history.csv, and of the last and
of the best checkpoint evaluation.csv and channels.csv (the raw sums behind T_act at A…E), each with its provenance.
A run whose results are complete is left out.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Scale:
    """How large the runs are: options of `coprobe train`, of the measurements, and the attacks."""

    train: str
    measure: str
    attacks: str


SCALES = {
    "paper": Scale(
        "--preset paper --precision bf16", "--limit all --batch-size 1000", "fgsm,pgd:10,pgd:20,pgd:50,cw,apgd-t,aa"
    ),
    # 30 epochs, so that those methods can be tried in seconds per epoch
    "fast": Scale("--preset fast --precision bf16", "--limit 1000", "fgsm,pgd:10,pgd:50,cw"),
    "small": Scale(
        "--preset paper --width 16 --limit-train 5000 --held-out 500 --epochs 15 --batch-size 64",
        "--limit 1000",
        "fgsm,pgd:10,pgd:50,cw",
    ),
}


@dataclass(frozen=True)
class Work:
    """One row of the plan, and where it is done."""

    run: str
    data: str
    knobs: str
    scale: str
    device: str

    @property
    def directory(self) -> Path:
        """The run directory, with the weights."""
        return Path("runs") / "campaign" / self.scale / self.run

    @property
    def results(self) -> Path:
        """Where its results are kept."""
        return HERE.relative_to(Path.cwd()) / "results" / self.scale / self.run

    def commands(self) -> list[tuple[Path, str]]:
        """The file that each command completes, and the arguments of `coprobe`."""
        scale = SCALES[self.scale]
        where = f"--data {self.data} --device {self.device}"
        train = f"train --resume --out {self.directory} {scale.train} {self.knobs} {where}"
        both = f"{self.directory}/checkpoint.pt {self.directory}/best.pt"
        evaluate = f"evaluate {both} --attacks {scale.attacks} --noise none --noise uniform:16 {scale.measure} {where}"
        steps = [
            (self.results / "history.csv", train),
            (self.results / "evaluation.csv", f"{evaluate} --out {self.results}/evaluation.csv"),
        ]
        nodes = " ".join(f"--node {node}" for node in "ABCDE")
        for name in ("checkpoint", "best"):
            out = self.results / f"channels-{name}.csv"
            measure = f"activations {self.directory}/{name}.pt {nodes} {scale.measure} {where}"
            steps.append((out, f"{measure} --out {out}"))
        return steps


def do(work: Work, stop: threading.Event) -> None:
    """Whatever of a run is still missing."""
    for file, arguments in work.commands():
        if stop.is_set():
            return
        if file.exists():
            continue
        began = time.perf_counter()
        code = call(arguments, work.directory, stop)
        print(
            f"{work.run}: coprobe {arguments.split()[0]}: exit {code}, {time.perf_counter() - began:.0f} s", flush=True
        )
        if code:
            return
        if file.name == "history.csv":
            file.parent.mkdir(parents=True, exist_ok=True)
            for name in ("recipe.json", "history.csv"):
                shutil.copy(work.directory / name, file.parent / name)


def call(arguments: str, directory: Path, stop: threading.Event) -> int:
    """Run `coprobe` with its output in a log beside the run; asked to end when it is time."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_suffix(".log").open("a") as log:
        command = [sys.executable, "-m", "coprobe", *shlex.split(arguments)]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            if stop.wait(0.2):
                process.terminate()
                return process.wait()
    return process.returncode


def main() -> None:
    """Read the options, work the plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="paper")
    parser.add_argument("--cifar10", help="--data of the CIFAR-10 runs; without it they are left out")
    parser.add_argument("--cifar100", help="--data of the CIFAR-100 runs; without it they are left out")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop, to go on another time")
    parser.add_argument("--only", type=lambda names: names.split(","), help="runs by name, separated by commas")
    options = parser.parse_args()
    stop = threading.Event()
    if options.minutes < float("inf"):
        timer = threading.Timer(60 * options.minutes, stop.set)
        timer.daemon = True
        timer.start()
    with (HERE / "plan.csv").open(newline="") as file:
        plan = list(csv.DictReader(file))
    with ThreadPoolExecutor(options.jobs) as pool:
        for row in plan:
            data = getattr(options, row["data"])
            if data and (options.only is None or row["run"] in options.only):
                pool.submit(do, Work(row["run"], data, row["knobs"], options.scale, options.device), stop)


if __name__ == "__main__":
    main()
