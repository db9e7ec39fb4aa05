"""How long the command line takes to answer, as whole processes.

    python -m benchmarks.startup [--checkpoint CKPT] [--repeats 9]

`coprobe --help`, and `coprobe inspect` on a checkpoint (a fresh ResNet-18 of width 64 has 45 MB), interleaved with
Python alone and with `import torch`. First it checks that they answer.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.subject import Subject, options
from benchmarks.timing import Bar, Candidate, bars, measure, origin, publish, table

HELP, INSPECT = "coprobe --help", "coprobe inspect"


def answer(*words: str) -> str:
    """What a process prints."""
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Check, measure and print."""
    arguments = options(__doc__ or "", images=256, repeats=9).parse_args()
    subject = Subject.of(arguments)
    coprobe = sys.executable, "-m", "coprobe"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        subject.checkpoint.save(path)
        if "diagnose" not in answer(*coprobe, "--help") or "resnet18" not in answer(*coprobe, "inspect", str(path)):
            raise SystemExit("coprobe does not answer")
        commands = {
            "python -c pass": (sys.executable, "-c", "pass"),
            'python -c "import torch"': (sys.executable, "-c", "import torch"),
            HELP: (*coprobe, "--help"),
            INSPECT: (*coprobe, "inspect", str(path)),
        }
        work = {name: Candidate(lambda words=words: answer(*words)) for name, words in commands.items()}
        measure(work.values(), arguments.repeats)
        size = path.stat().st_size / 1e6
    asked = [
        Bar(f"{HELP}, seconds", work[HELP].seconds, most=0.25),
        Bar(f"{INSPECT} on {size:.0f} MB, seconds", work[INSPECT].seconds, most=3),
    ]
    about = f"{subject.name}, a file of {size:.0f} MB;"
    lines = [about, *origin(subject.device), *table(work, beside=list(work)[1:2]), "", *bars(asked)]
    publish("How long the command line takes to answer", lines, arguments.out)


if __name__ == "__main__":
    main()
