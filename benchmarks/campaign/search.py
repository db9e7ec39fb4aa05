"""Which recipe shows catastrophic overfitting on real images, on two cores.

    python -m benchmarks.campaign.search --data parquet:DIR [--only NAME,NAME] [--jobs 2]

Trains every candidate that is not trained yet, one thread each and at the lowest priority, measures its best and its
last checkpoint, keeps a line of numbers in `search/NAME.json` beside its `NAME.csv` (a row per epoch), and writes
`search.md`. Can be stopped at any moment; the same command goes on. Weights stay in `runs/search`, which git ignores.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from coprobe.verdict.rule import collapse_epoch

HERE = Path(__file__).parent / "search"
WEIGHTS = Path("runs/search")
#: Every candidate is this, but for the knobs beside its name.
BASE: Mapping[str, Any] = {
    "method": "fgsm-rs", "eps_train": 8.0, "arch": "resnet18", "width": 16, "limit_train": 15_000, "held_out": 500,
    "epochs": 15, "batch_size": 128, "lr": 0.1, "schedule": "one-cycle", "precision": "bf16", "eps_also": 0.0,
}  # fmt: skip
CANDIDATES: dict[str, dict[str, Any]] = {
    "base": {},
    "eps-7": {"eps_train": 7.0},
    "fgsm-6": {"method": "fgsm", "eps_train": 6.0},
    "fgsm-4": {"method": "fgsm", "eps_train": 4.0},
    "rs-6-step-2": {"eps_train": 6.0, "step_size": 12.0},
    "fgsm-5": {"method": "fgsm", "eps_train": 5.0},
    "fgsm-6-lr-0.2": {"method": "fgsm", "eps_train": 6.0, "lr": 0.2},
    "fgsm-5-lr-0.2": {"method": "fgsm", "eps_train": 5.0, "lr": 0.2},
    "fgsm-7": {"method": "fgsm", "eps_train": 7.0},
    "fgsm-7-lr-0.2-images-25k-epochs-10": {
        "method": "fgsm",
        "eps_train": 7.0,
        "lr": 0.2,
        "limit_train": 25_000,
        "epochs": 10,
    },
    "fgsm-8": {"method": "fgsm", "eps_train": 8.0},
    "images-20k": {"limit_train": 20_000},
    "images-25k-epochs-12": {"limit_train": 25_000, "epochs": 12},
    "epochs-20": {"epochs": 20},
    "lr-0.2": {"lr": 0.2},
    "lr-0.05": {"lr": 0.05},
    "batch-64": {"batch_size": 64},
}
ABOUT = f"""# Which recipe shows catastrophic overfitting

Made by `python -m benchmarks.campaign.search`: {BASE["arch"]} of width {BASE["width"]} on real CIFAR-10, one thread,
the knobs of `BASE` in `search.py` but for those that a candidate names. Accuracies in %; PGD-10 over the epochs on
{BASE["held_out"]} held-out images, the rest on 400 test images at the end (for `best`, of the epoch with the highest
PGD-10 accuracy), all at the training radius ε (n of n/255). T_act at A: the three largest of {BASE["width"]} channels.
Minutes are those of the clock, most of them with other work beside the training.
"""
#: Test images, and the attacks that judge.
IMAGES = 400
ATTACKS = ("fgsm", "pgd:50", "apgd-ce")


def train_and_measure(name: str, data: str) -> None:
    """One candidate, from nothing to its numbers, or from wherever it was left."""
    os.nice(19 - os.nice(0))
    import torch

    from coprobe.training import Recipe, train

    torch.set_num_threads(1)
    recipe = Recipe(**{**BASE, **CANDIDATES[name], "data": data})
    run = train(recipe, WEIGHTS / name, resume=True, save_minutes=1.0)
    history = run.history
    numbers = {which: measured(path, data, recipe) for which, path in (("best", run.best), ("last", run.checkpoint))}
    HERE.mkdir(exist_ok=True)
    history.to_csv(HERE / f"{name}.csv", index=False, float_format="%.6g")
    found = {"recipe": asdict(recipe) | {"data": "cifar10"}, **run.about()["provenance"], "outcome": run.outcome}
    found |= {"minutes": round(history["seconds"].sum() / 60, 1), **numbers}
    (HERE / f"{name}.json").write_text(json.dumps(found, indent=1, default=str) + "\n", encoding="utf-8")


def measured(path: Path, data: str, recipe: Any) -> dict[str, Any]:
    """Accuracies (fractions) of a checkpoint at its training budget, and what its channels at A do."""
    import coprobe
    from coprobe.data import load

    probe = coprobe.Probe(coprobe.load(path), load(data, "test", limit=IMAGES), epsilon=recipe.eps_train / 255)
    evaluation = probe.evaluate(ATTACKS)
    statistics = probe.activations(("A",), "pgd:10")
    t_act = sorted(map(float, statistics.t_act("A")), reverse=True)
    accuracies = {attack: round(evaluation.accuracy(attack), 4) for attack in ("clean", *ATTACKS)}
    v_act = round(statistics.v_act("A"), 3)
    return accuracies | {"t_act_A": [round(value, 4) for value in t_act[:3]], "v_act_A": v_act}


def table() -> str:
    """What was found so far, a row per candidate, in Markdown."""
    lines = [
        "| candidate | ε | min | PGD-10 peak (epoch) | CO | clean | FGSM | PGD-50 | APGD-CE | best APGD-CE | T_act |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for name in CANDIDATES:
        path = HERE / f"{name}.json"
        if not path.exists():
            continue
        found, history = json.loads(path.read_text(encoding="utf-8")), pd.read_csv(HERE / f"{name}.csv")
        last, best, collapse = found["last"], found["best"], collapse_epoch(history.to_dict("records"))
        peak = history["pgd10"].idxmax()
        cells = [
            name, f"{found['recipe']['eps_train']:g}", f"{found['minutes']:.0f}",
            f"{100 * history['pgd10'][peak]:.1f} ({peak + 1})", "–" if collapse is None else str(collapse),
            *(f"{100 * last[attack]:.1f}" for attack in ("clean", *ATTACKS)), f"{100 * best['apgd-ce']:.1f}",
            ", ".join(f"{value:.3f}" for value in last["t_act_A"]),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(CANDIDATES)
    names = [name for name in names if not (HERE / f"{name}.json").exists()]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for future in [pool.submit(train_and_measure, name, arguments.data) for name in names]:
            future.result()
            (HERE.parent / "search.md").write_text(f"{ABOUT}\n{table()}", encoding="utf-8")


if __name__ == "__main__":
    main()
