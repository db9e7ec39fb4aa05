"""How much longer a command takes beside busy processes, as whole processes.

    python -m benchmarks.busy [--busy 2] [--repeats 3] [--only train,paper] [--spinning]

Each command takes turns with itself beside processes that only count. On as many cores as there are of these, a command
whose threads never waited for each other would take twice as long. `--spinning` measures beside it the same command
with GOMP_SPINCOUNT=300000, which is how long threads spin where nobody says how they shall wait.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.subject import Subject, options
from benchmarks.timing import Bar, Candidate, bars, origin, publish

#: By what they are called; {new} is a folder of their own, {checkpoint} a fresh network for handwritten digits.
COMMANDS = {
    "demo": "train --preset demo --epochs 1 --out {new}/run",
    "train": "train --method fgsm-mep --data digits --width 16 --batch-size 128 --limit-train 1280 --held-out 128 "
    "--eps-train 16 --epochs 1 --out {new}/run",
    "activations": "activations {checkpoint} --data digits --limit 256",
    "evaluate": "evaluate {checkpoint} --data digits --limit 256 --attacks fgsm:rule=always,pgd:10:rule=always",
    "paper": "paper --scale demo --only fig3 --runs {new}/runs --out {new}/figures --device cpu",
}
#: As a command chooses by itself, and as libgomp waits where nobody says anything.
WAYS: dict[str, dict[str, str]] = {"as it is": {}, "spinning": {"GOMP_SPINCOUNT": "300000"}}
MOST = 3.0


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that never wait."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def seconds(line: str, checkpoint: Path, environment: dict[str, str]) -> float:
    """What a command takes."""
    with tempfile.TemporaryDirectory(dir=checkpoint.parent) as new:
        words = line.format(new=new, checkpoint=checkpoint).split()
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "coprobe", *words], env=os.environ | environment, check=True, capture_output=True
        )
        return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = options(__doc__ or "", images=256, repeats=3)
    parser.set_defaults(width=16, data="digits")
    parser.add_argument("--busy", type=int, default=2, help="processes beside")
    parser.add_argument("--only", default=",".join(COMMANDS), help="some of the commands")
    parser.add_argument("--spinning", action="store_true", help="measure also how it was with threads that spin")
    arguments = parser.parse_args()
    subject = Subject.of(arguments)
    work = [(name, way) for name in arguments.only.split(",") for way in list(WAYS)[: 1 + arguments.spinning]]
    alone, beside = ({row: Candidate(lambda: None) for row in work} for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint.pt"
        subject.checkpoint.save(checkpoint)
        state = {"COPROBE_STATE": folder, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        for _ in range(arguments.repeats):
            for name, way in work:
                for candidates, count in ((alone, 0), (beside, arguments.busy)):
                    with busy(count):
                        took = seconds(COMMANDS[name], checkpoint, state | WAYS[way])
                    candidates[name, way].times.append(took)
                    print(f"{name}, {way}, beside {count} busy processes: {took:.1f} s", file=sys.stderr)
    slower = {row: beside[row].relative_to(alone[row]) for row in work}
    rows = [
        f"| `coprobe {COMMANDS[name].split(' --')[0].replace('{checkpoint}', 'CKPT')}` ({name}) | {way} "
        f"| {alone[name, way].spread} | {beside[name, way].spread} | {slower[name, way]:.2f} |"
        for name, way in work
    ]
    asked = [
        Bar(f"{name}: time beside {arguments.busy} busy processes over that alone", slower[name, way], most=MOST)
        for name, way in work
        if way == "as it is"
    ]
    found = [
        f"{subject.name}, whole commands, {arguments.repeats} round(s), on {os.cpu_count()} cores;",
        *origin(subject.device),
        f"| command | its threads | seconds alone (min – max) | beside {arguments.busy} (min – max) | times as long |",
        "|---" * 5 + "|",
        *rows,
        "",
        *bars(asked),
    ]
    publish("What busy processes beside a command cost it", found, arguments.out)


if __name__ == "__main__":
    main()
