"""What every training method gives at a small scale on the CPU: the table of README.md.

    OMP_NUM_THREADS=1 python -m benchmarks.methods --data parquet:DIR [--methods fgsm,fgsm-rs]

Trains a ResNet-18 of width 16 on 3,000 CIFAR-10 images for 8 epochs at 8/255 with each method's defaults (free: one
epoch of its 8 replays), and measures the last checkpoint on 1,000 test images. Rows are added to
benchmarks/results/methods.csv as they come; a method that is there already is left out.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd

from coprobe.training import METHODS, Run

RECIPE = "--eps-train 8 --width 16 --limit-train 3000 --held-out 200 --epochs 8 --batch-size 64 --lr 0.1 --seed 0"
#: As in its public code, which divides the epochs by the replays.
INSTEAD = {"free": "--epochs 1"}
RESULTS = Path(__file__).parent / "results" / "methods.csv"
ATTACKS = {"clean": "clean", "FGSM": "fgsm", "PGD-10": "pgd10"}


def coprobe(arguments: str) -> None:
    """Run a command of coprobe; stop if it fails."""
    subprocess.run([sys.executable, "-m", "coprobe", *shlex.split(arguments)], check=True, stdout=subprocess.DEVNULL)


def measured(method: str, data: str) -> dict[str, object]:
    """Train and measure one method."""
    out = Path("runs") / "methods" / method
    train = f"train --method {method} {RECIPE} {INSTEAD.get(method, '')} --data {data} --device cpu --out {out}"
    coprobe(f"{train} --overwrite")
    coprobe(f"evaluate {out} --eps 8 --attacks fgsm,pgd:10 --limit 1000 --device cpu --out {out}/evaluation.csv")
    frame = pd.read_csv(out / "evaluation.csv").set_index("attack")["accuracy"]
    about = Run(out).about()
    row = {"method": method} | {column: frame[attack] for attack, column in ATTACKS.items()}
    row["train_seconds"] = round(Run(out).history["train_seconds"].sum(), 1)
    row |= {"collapse_epoch": about["outcome"]["collapse_epoch"], "commit": about["provenance"]["commit"]}
    return {**row, "command": f"coprobe {train}"}


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--methods", default=",".join(METHODS), help="names separated by commas")
    options = parser.parse_args()
    for method in options.methods.split(","):
        rows = pd.read_csv(RESULTS).to_dict("records") if RESULTS.exists() else []
        if method not in [row["method"] for row in rows]:
            rows.append(measured(method, options.data))
            pd.DataFrame(rows).to_csv(RESULTS, index=False)
            print(pd.DataFrame(rows[-1:]).drop(columns=["command"]).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
