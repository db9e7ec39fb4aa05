"""Whether memory stays the same when images become more: each command in a process of its own.

    python -m benchmarks.memory --data parquet:DIR [--sizes 1000,10000] [--width 4] [--device cuda]

Peak resident memory of `coprobe activations`, `mask`, `evaluate` and `diagnose` at a smaller and a larger `--limit`,
read by the child itself from the kernel (VmHWM), and beside them the attack alone; with CUDA also the peak of what
torch allocated there. A narrow network will do, since the images are what grows. First it checks that every command
has measured as many images as it was told.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.subject import Subject, options
from benchmarks.timing import Bar, bars, origin, publish, shown

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
    from coprobe.inference import fast

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


def peaks(subject: Subject, checkpoint: Path, data: str, limit: int, words: Sequence[str]) -> tuple[int, int]:
    """Peak bytes resident and on the GPU of a process that looks at so many images; stops if it looked at others."""
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
    resident, allocated = json.loads(child.stderr.splitlines()[-1])
    return resident, allocated


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
    took: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        subject.checkpoint.save(path)
        for _ in range(arguments.repeats):
            for name, words in commands.items():
                for limit in (few, many):
                    took[name, limit].append(peaks(subject, path, arguments.data, limit, words))
    highest = {key: tuple(map(max, zip(*them, strict=True))) for key, them in took.items()}

    on_gpu = subject.device.type == "cuda"
    width = f"width {subject.checkpoint.arch_args.get('width', 'unknown')}"
    asked, rows = [], []
    for name in commands:
        (small, small_gpu), (large, large_gpu) = highest[name, few], highest[name, many]
        cells = [small / 2**20, large / 2**20, *[small_gpu / 2**20, large_gpu / 2**20] * on_gpu]
        rows.append(f"| {name} | {' | '.join(f'{cell:,.0f}' for cell in cells)} | {large / small - 1:+.1%} |")
        asked.append(Bar(f"{width}, {name}: resident at {many:,} over {few:,} images", large / small, most=GROWTH))
        if on_gpu and name != ALONE in commands:
            alone = highest[ALONE, many][1]
            asked.append(Bar(f"{width}, {name}: on the GPU, over the attack alone", large_gpu / alone, most=1.1))
    sizes = [f"{where}MiB at {size:,}" for where in ("", "GPU ")[: 1 + on_gpu] for size in (few, many)]
    found = [
        f"{subject.name}, images of {shown(arguments.data)} in batches of {subject.own_size}, "
        f"the largest of {arguments.repeats} run(s);",
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
