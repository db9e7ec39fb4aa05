"""Results of the paper's runs, made up but plausible and the same every time: a directory as training and measuring
leave it, in a moment."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from coprobe.attacks.examples import CLEAN
from coprobe.checkpoint.normalisation_check import converged
from coprobe.core import results as store
from coprobe.metrics.accumulator import SUMS
from coprobe.paper.needs import Need, merged
from coprobe.paper.results import Results
from coprobe.paper.runs import RUNS, Scale, scale_of
from coprobe.verdict.rule import collapse_epoch

NODES = "ABCDE"
#: Every node of a made-up model has as many channels, and these move much where it is CO-affected.
CHANNELS, SALIENT = 16, (3, 7)
DRAWS = 2
#: Accuracies of each fate without noise and with it: clean, one step, few steps, many steps, AutoAttack.
_STEPS = {CLEAN: 0, "fgsm": 1, "pgd10": 2, "pgd20": 3, "pgd50": 3, "cw": 3, "apgd_t": 4, "aa": 4}
_QUIET = {
    "CO": (0.88, 0.80, 0.03, 0.01, 0.0),
    "stable": (0.72, 0.48, 0.36, 0.30, 0.20),
    "clean": (0.94, 0.02, 0.0, 0.0, 0.0),
    "noise": (0.85, 0.30, 0.12, 0.05, 0.02),
    "failed": (0.10, 0.10, 0.10, 0.10, 0.10),
}
_NOISY = {**_QUIET, "CO": (0.87, 0.70, 0.62, 0.50, 0.32), "clean": (0.80, 0.04, 0.0, 0.0, 0.0)}


def fate_of(name: str) -> str:
    """What becomes of a run: CO, stable, clean, noise, or failed (it does not converge)."""
    knobs = RUNS[name].knobs
    if knobs["method"] == "clean":
        return "clean"
    if knobs["method"] == "noise" or "noise" in knobs:
        return "noise"
    if node := knobs.get("stable_node"):  # as Table 1 has it
        weight = knobs["stable_weight"]
        if node == "B" and weight > 100:
            return "stable"
        return "failed" if (node, weight) in (("A", 400), ("A", 1000), ("E", 1000)) else "CO"
    collapses = knobs["method"] in ("baseline", "fgsm-rs") and knobs["eps_train"] > 8 and not knobs.get("logit_weight")
    return "CO" if collapses or name.startswith("co-") else "stable"


def accuracy_of(fate: str, which: str, attack: str, noise: str = "none", jitter: str = "") -> float:
    """A fraction; an attack that is no column of the paper counts as one of many steps."""
    fate = "stable" if (fate, which) == ("CO", "best") else fate
    accuracy = (_QUIET if noise == "none" else _NOISY)[fate][_STEPS.get(attack, 3)]
    return accuracy and min(1.0, max(0.0, accuracy + 0.02 * (_unit(jitter, attack, noise) - 0.5)))


def make_results(
    directory: Path,
    scale: str | Scale = "demo",
    runs: Iterable[str] | None = None,
    needs: Iterable[Need] = (),
    *,
    seeds: int = 1,
    data: Mapping[str, str] | None = None,
    fates: Mapping[str, str] | None = None,
) -> Results:
    """Runs that ended and, of these, whatever is needed.

    Args:
        directory: where the runs go.
        scale: their scale.
        runs: their names; None stands for all whose images the scale has.
        needs: what is measured of them; needs of other runs are left out.
        seeds: how many times each is trained.
        data: see `Results`.
        fates: of runs that `fate_of` should not decide.
    """
    results = Results(directory, scale_of(scale) if isinstance(scale, str) else scale, data or {}, seeds)
    results.mark()
    chosen = {name: (fates or {}).get(name) or fate_of(name) for name in (results.runs if runs is None else runs)}
    for seed in range(seeds):
        for name, fate in chosen.items():
            put_run(results, name, history_of(results, name, fate, seed), seed)
        here = [need.on(results.which(need.run, need.which, seed)) for need in needs if need.run in chosen]
        for need in merged(here):
            put(results, need, _MAKERS[need.kind](results, need, chosen[need.run], seed), seed)
    return results


def put_run(results: Results, name: str, history: pd.DataFrame, seed: int = 0, **outcome: Any) -> None:
    """Write a run that ended with this history (columns epoch, clean, fgsm, pgd10); `outcome` over what follows."""
    run = results.run(name, seed)
    run.directory.mkdir(parents=True, exist_ok=True)
    history.to_csv(run.directory / "history.csv", index=False)
    pgd10 = history["pgd10"].tolist()
    ended = {
        "ended_by": "epochs",
        "epochs": len(history),
        "best_epoch": max(range(len(pgd10)), key=lambda place: (pgd10[place], place)) + 1,
        "collapse_epoch": collapse_epoch(history.to_dict("records")),
        "converged": converged(float(history["clean"].iloc[-1]), 100 if RUNS[name].data == "cifar100" else 10),
        **outcome,
    }
    about = {**results.recipe(name, seed).to_dict(), "provenance": {"made": "up"}, "outcome": ended}
    (run.directory / "recipe.json").write_text(json.dumps(about), encoding="utf-8")


def put(results: Results, need: Need, frame: pd.DataFrame, seed: int = 0) -> None:
    """Write what was measured for a need, exactly under its `which`."""
    store.write(results.path(need, seed), frame, results.key(need, seed), {"made": "up"})


def put_accuracy(
    results: Results, need: Need, correct: Mapping[tuple[str, str], Sequence[int]], n: int = 100, seed: int = 0
) -> None:
    """Write counts of correct images, one per draw, by (attack, noise); the need says no more than where."""
    rows = [
        {"attack": attack, "spec": results.spec(attack), "noise": noise, "draw": draw, "correct": k}
        for (attack, noise), counts in correct.items()
        for draw, k in enumerate(counts)
    ]
    frame = pd.DataFrame(rows).assign(source="", n=n)
    put(results, dataclasses.replace(need, kind="accuracy"), frame, seed)


def history_of(results: Results, name: str, fate: str, seed: int = 0) -> pd.DataFrame:
    """A row per epoch, with the second radius where the run is watched; CO comes in the second half."""
    recipe = results.recipe(name, seed)
    epoch = np.arange(1, recipe.epochs + 1)
    jitter = np.array([_unit(name, seed, number) for number in epoch])
    collapsed = (epoch > (recipe.epochs + 1) // 2) & (fate == "CO")
    rise = 0.7 + 0.3 * epoch / recipe.epochs
    table = pd.DataFrame({"epoch": epoch, "lr": recipe.lr, "train_loss": 2.3 - rise, "train_accuracy": 0.6 * rise})
    table["train_seconds"] = 30.0
    if recipe.stable_node:
        table["stable"] = 0.01 / epoch
    for radius in ("", f"_{recipe.eps_also:g}") if recipe.eps_also else ("",):
        for column, attack in ((CLEAN, CLEAN), ("fgsm", "fgsm"), ("pgd10", "pgd10")):
            usual, after = (
                accuracy_of("stable" if fate == "CO" else fate, "last", attack),
                accuracy_of("CO", "last", attack),
            )
            values = np.where(collapsed, after, usual * rise) + 0.005 * jitter
            if column != CLEAN or not radius:
                table[column + radius] = usual if fate == "failed" else values
        for place, node in enumerate(NODES):
            table[f"v_act_{node}{radius}"] = (5.0 + place) * np.where(collapsed, 4, 1) + jitter
    return table.assign(seconds=33.0)


def _unit(*what: object) -> float:
    """A number in [0, 1) that only depends on `what`."""
    return zlib.crc32(repr(what).encode()) / 2**32


def _images(results: Results) -> int:
    return results.scale.images or 10_000


def _accuracy(results: Results, need: Need, fate: str, seed: int) -> pd.DataFrame:
    n = _images(results)
    rows = []
    for source in need.sources or ("",):
        for attack in results.attacks(need):
            for noise in need.noises:
                # what was crafted on another model hardly hurts this one
                as_if = "fgsm" if source and attack != CLEAN else attack
                for draw in range(1 if noise == "none" else DRAWS):
                    share = accuracy_of(
                        fate, need.which, as_if, noise, f"{need.run} {seed} {source} {attack} {draw} {need.xi:g}"
                    )
                    row = {"source": source, "attack": attack, "spec": results.spec(attack), "noise": noise}
                    rows.append({**row, "draw": draw, "n": n, "correct": round(share * n)})
    return pd.DataFrame(rows)


def _channels(results: Results, need: Need, fate: str, seed: int) -> pd.DataFrame:
    parts = []
    for place, node in enumerate(NODES):
        moved = _moved(need, fate, seed, node)
        images, positions = _images(results), 4 ** (5 - place)
        frame = pd.DataFrame(
            {"node": node, "channel": range(CHANNELS), "channels": CHANNELS, **dict.fromkeys(SUMS, 0.0)}
        )
        count = images * positions
        frame["difference_squared"] = moved * CHANNELS * count
        frame["difference"], frame["clean"], frame["adversarial"] = 0.01 * count, 0.5 * count, 0.51 * count
        variance = 0.1 + 0.1 * np.array([_unit(need.run, node, channel) for channel in range(CHANNELS)])
        for column in ("clean", "adversarial"):
            frame[f"{column}_squared"] = count * (variance + (frame[column] / count) ** 2)
        frame["images"], frame["positions"] = images, positions
        frame["norm"] = images * (20.0 if fate == "CO" and need.which == "last" else 5.0)
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)


def _moved(need: Need, fate: str, seed: int, node: str) -> np.ndarray:
    """S_k per image: small, and large in the salient channels of a CO-affected model."""
    moved = np.array([1e-4 * (1 + _unit(need.run, seed, node, channel)) for channel in range(CHANNELS)])
    if fate == "CO" and need.which == "last" and node in "AB":
        moved[list(SALIENT)] = 0.03
    return moved


def _overlap(results: Results, need: Need, fate: str, seed: int) -> pd.DataFrame:
    alike = 0.9 if fate == "CO" and need.which == "last" else 0.4
    return pd.DataFrame(
        {"node": "A", "attack": attack, "top": 5, "images": _images(results),
         "jaccard_images": alike - 0.1 * _unit(need.run, seed, attack), "jaccard_halves": alike}
        for attack in ("pgd:10:rule=always", "fgsm", "pgd:50")
    )  # fmt: skip


def _masking(results: Results, need: Need, fate: str, seed: int) -> pd.DataFrame:
    n = _images(results)
    rows = []
    masks = {"none": 0, "T_act > 0.99": 1, "T_act > 0.5": 2, "T_act > 0.1": 3, "variance": 2, "random": 2}
    for attack in results.attacks(need):
        for mask, masked in masks.items():
            heals = mask.startswith("T_act") and fate == "CO" and need.which == "last"
            for draw in range(5 if mask == "random" else 1):
                share = accuracy_of(
                    "stable" if heals else fate, need.which, attack, "none", f"{need.run} {seed} {mask} {draw}"
                )
                rows.append(
                    {
                        "attack": attack,
                        "mask": mask,
                        "masked": masked,
                        "draw": draw,
                        "n": n,
                        "correct": round(share * n),
                    }
                )
    return pd.DataFrame(rows)


def _increments(results: Results, need: Need, fate: str, seed: int) -> pd.DataFrame:
    rows = []
    for node in "AB":
        count = CHANNELS * 64 * _images(results)
        for step in range(11):
            for channel, moved in enumerate(_moved(need, fate, seed, node)):
                row = {"node": node, "channel": channel, "step": step, "channels": CHANNELS, "positions": 64}
                row |= {"images": _images(results), "difference_squared": moved * count * (0.1 + 0.09 * step)}
                rows.append({**row, "step_squared": moved * count * 0.02 if step else np.nan})
    return pd.DataFrame(rows)


_MAKERS = {
    "accuracy": _accuracy,
    "transfer": _accuracy,
    "channels": _channels,
    "overlap": _overlap,
    "masking": _masking,
    "increments": _increments,
}
