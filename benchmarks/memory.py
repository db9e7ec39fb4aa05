"""Whether memory stays the same when images become more: each command in a process of its own.

    python -m benchmarks.memory --data parquet:DIR [--sizes 1000,10000] [--width 4] [--device cuda]

Peak resident memory of `coprobe activations`, `mask`, `evaluate` and `diagnose` at a smaller and a larger `--limit`,
read by the child itself from the kernel (VmHWM), and beside them the attack alone; with CUDA also the peak of what
torch allocated there. A narrow network takes less time, but of its small process the images are a larger share. Both
sizes take turns; of several rounds, memory is the median and growth the median of the growths of one round each. What
a round found is said on stderr as it comes. Every command is checked to have measured as many images as it was told.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.subject import Subject, options
from benchmarks.timing import Bar, bars, origin, publish, shown, spread

COMMANDS = "activations", "mask --node A", "evaluate --attacks fgsm,pgd:10", "diagnose"
ALONE = "the attack alone"
GROWTH = 1.05

#: Runs a command, or without one the probing attack, and says on the last line of stderr what it took.
CHILD = """
import json, sys
from pathlib import Path

checkpoint, data, limit, batch_size, device, *words = sys.argv[1:]
if words:
    from coprobe.cli import main
    code = main([words[0], checkpoint, "--data", data, "--limit", limit, "--batch-size", batch_size,
                 "--device", device, "--json", *words[1:]])
    if code:
        raise SystemExit(code)
else:
    import coprobe
    from coprobe.attacks import AdversarialExamples, parse
    from coprobe.data import load
    from coprobe.fast.classifier import fast

    model = fast(coprobe.load(checkpoint).model.to(device))
    attack = parse("pgd:10:rule=always", 16 / 255)
    images = load(data, limit=int(limit))
    batches = AdversarialExamples(model, images, [attack], batch_size=int(batch_size), device=device)
    print(json.dumps({"images": sum(len(batch.labels) for batch in batches)}))

import torch

status = Path("/proc/self/status").read_text().split()
resident = 1024 * int(status[status.index("VmHWM:") + 1])
print(json.dumps([resident, torch.cuda.max_memory_allocated()]), file=sys.stderr)
"""


class Peak(NamedTuple):
    """The most bytes that a process had resident, and allocated on the GPU."""

    resident: int
    allocated: int


def peaks(subject: Subject, checkpoint: Path, data: str, limit: int, words: Sequence[str]) -> Peak:
    """Of a process that looks at so many images; stops if it looked at others."""
    given = checkpoint, data, limit, subject.own_size, subject.device
    state = {"COPROBE_STATE": str(checkpoint.parent), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, given), *words],
        capture_output=True,
        text=True,
        env=os.environ | state,
        check=False,
    )
    if child.returncode:
        raise SystemExit(f"{' '.join(words) or ALONE}: {child.stderr}")
    if f'"images": {limit}' not in child.stdout:
        raise SystemExit(f"{' '.join(words) or ALONE} has not looked at {limit} images")
    return Peak(*json.loads(child.stderr.splitlines()[-1]))


def main() -> None:
    """Check, measure and print."""
    parser = options(__doc__ or "", images=256, repeats=1)
    parser.set_defaults(width=4, data="digits")
    parser.add_argument("--sizes", default="1000,10000", help="two numbers of images")
    parser.add_argument(
        "--commands", help="other commands than these, with semicolons between, and not the attack alone"
    )
    arguments = parser.parse_args()
    few, many = map(int, arguments.sizes.split(","))
    subject = Subject.of(arguments)
    lines = arguments.commands.split(";") if arguments.commands else COMMANDS
    commands = {f"coprobe {line.strip()}": line.split() for line in lines} | ({} if arguments.commands else {ALONE: []})
    rounds: dict[str, list[tuple[Peak, Peak]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        subject.checkpoint.save(path)
        for number in range(arguments.repeats):
            for name, words in commands.items():
                small, large = (peaks(subject, path, arguments.data, limit, words) for limit in (few, many))
                rounds[name].append((small, large))
                print(f"round {number + 1}, {name}: {small.resident:,} and {large.resident:,} bytes", file=sys.stderr)

    on_gpu = subject.device.type == "cuda"
    width = f"width {subject.checkpoint.arch_args.get('width', 'unknown')}"
    asked, rows = [], []
    for name, them in rounds.items():
        growths = [large.resident / small.resident for small, large in them]
        cells = [
            spread([pair[size][place] / 2**20 for pair in them], ",.0f")
            for place in range(1 + on_gpu)
            for size in range(2)
        ]
        rows.append(f"| {name} | {' | '.join(cells)} | {spread([growth - 1 for growth in growths], '+.1%')} |")
        growth = statistics.median(growths)
        asked.append(Bar(f"{width}, {name}: resident at {many:,} over {few:,} images", growth, most=GROWTH))
        if on_gpu and name != ALONE in commands:
            alone = [its.allocated for _, its in rounds[ALONE]]
            ratio = statistics.median(large.allocated / its for (_, large), its in zip(them, alone, strict=True))
            asked.append(Bar(f"{width}, {name}: on the GPU, over the attack alone", ratio, most=1.1))
    sizes = [f"{where}MiB at {size:,}" for where in ("", "GPU ")[: 1 + on_gpu] for size in (few, many)]
    found = [
        f"{subject.name}, images of {shown(arguments.data)} in batches of {subject.own_size}, "
        f"median of {arguments.repeats} round(s) (min – max);",
        *origin(subject.device),
        f"| what | {' | '.join(sizes)} | growth |",
        "|---" * (2 + len(sizes)) + "|",
        *rows,
        "",
        *bars(asked),
    ]
    publish("How much memory probing takes", found, arguments.out)


if __name__ == "__main__":
    main()
