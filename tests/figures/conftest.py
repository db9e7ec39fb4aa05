"""Frames as the library makes them, with values made up by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from coprobe.metrics.accuracy import wilson

MASKS = {"none": 0, "T_act > 0.99": 1, "T_act > 0.5": 2, "variance": 2, "random": 2}
ATTACKS = ["clean", "FGSM", "PGD-50"]


@pytest.fixture
def histories() -> pd.DataFrame:
    """Two runs of 30 epochs; the first collapses in epoch 12."""
    epoch = np.arange(30)
    stable = pd.DataFrame({"epoch": epoch, "clean": 0.8, "fgsm": 0.5, "pgd10": 0.4})
    for place, node in enumerate("ABCDE"):
        stable[f"v_act_{node}"] = 5.0 + place
    bad = stable.assign(pgd10=np.where(epoch < 12, 0.4, 0.01), fgsm=np.where(epoch < 12, 0.5, 0.9))
    bad.loc[epoch >= 12, "v_act_A"] = 40.0
    return pd.concat([bad.assign(run="bad"), stable.assign(run="good")], ignore_index=True)


@pytest.fixture
def channels() -> pd.DataFrame:
    """Two models with 16 channels at two nodes; channels 2, 3 and 12 of the first are salient."""
    parts = []
    for run, kind in (("bad", "CO-affected"), ("good", "stable")):
        for node in ("A", "B"):
            t_act = np.linspace(0.001, 0.02, 16)
            if kind == "CO-affected":
                t_act[[2, 3, 12, 7]] = 0.8, 0.9, 1.0, 0.5
            part = pd.DataFrame({"node": node, "channel": range(16), "t_act": t_act, "run": run, "kind": kind})
            parts.append(part.sort_values("t_act", ascending=False))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture
def accuracies() -> pd.DataFrame:
    """Three attacks × five masks; no mask and no image right under PGD-50."""
    rows = []
    for a, attack in enumerate(ATTACKS):
        for m, (mask, masked) in enumerate(MASKS.items()):
            correct = 0 if (attack, mask) == ("PGD-50", "none") else 90 - 20 * a - 3 * m
            low, high = wilson(correct, 100)
            rows.append((attack, "none", mask, masked, 100, correct, correct / 100, low, high))
    names = ["attack", "noise", "mask", "masked", "n", "correct", "accuracy", "low", "high"]
    return pd.DataFrame(rows, columns=names)
