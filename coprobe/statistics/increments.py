"""How far each channel moves at every step of an attack (Fig. 10): one pass, float64, constant memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from coprobe.attacks import ATTACKS, Attack, StepAttack
from coprobe.attacks.examples import attack_generator, clean_images
from coprobe.data import Dataset
from coprobe.engine import frozen, in_batches
from coprobe.errors import InputError, RunError
from coprobe.files import write_table
from coprobe.nodes import Recording, check_neutral, record, resolve
from coprobe.statistics.accumulator import differences_squared
from coprobe.statistics.reading import read_frame

_COLUMNS = ("node", "channel", "step", "channels", "positions", "images", "difference_squared", "step_squared")


@dataclass(frozen=True)
class Increments:
    """One row per (node, step, channel), in this order, with raw sums over the images.

    `frame` has the columns node, channel, step (0, the attack's start, to T), channels (N), positions (H·W), images,
    difference_squared (Σ_x ‖M_k(x_step) − M_k(x)‖², against the clean image) and step_squared
    (Σ_x ‖M_k(x_step) − M_k(x_{step−1})‖², NaN at step 0). `frame.attrs` says what made it. A node like `A:12` has
    the rows of channel 12, with the N of the whole node.
    """

    frame: pd.DataFrame

    def s(self, node: str) -> np.ndarray:
        """S_k(j) = Σ_x V^k(x, x_j) / (N·H·W) at step j, un-squashed (Fig. 10), float64 (steps + 1, channels).

        Raises:
            InputError: the node was not recorded.
        """
        return self._scaled(node, "difference_squared")

    def s_step(self, node: str) -> np.ndarray:
        """The same between consecutive steps, float64 (steps + 1, channels); NaN at step 0."""
        return self._scaled(node, "step_squared")

    def table(self) -> pd.DataFrame:
        """Columns node, channel, step, s, s_step, images; rows as in `frame`."""
        table = self.frame[["node", "channel", "step"]].copy()
        values = self.frame["channels"] * self.frame["positions"]
        table["s"] = self.frame["difference_squared"] / values
        table["s_step"] = self.frame["step_squared"] / values
        table["images"] = self.frame["images"]
        table.attrs = self.frame.attrs
        return table

    def write(self, path: str | Path) -> None:
        """Write the raw sums as Parquet, CSV or JSON, by suffix."""
        write_table(self.frame, path)

    @staticmethod
    def read(path: str | Path) -> Increments:
        """Read what `write` wrote, by suffix; raises `InputError` if it is no such file."""
        return Increments(read_frame(path, "increments", _COLUMNS))

    def _scaled(self, node: str, column: str) -> np.ndarray:
        rows = self.frame[self.frame["node"] == node]
        if rows.empty:
            recorded = ", ".join(self.frame["node"].unique())
            raise InputError(f"node '{node}' is not in these increments, which hold {recorded}; record it as well")
        scaled = rows[column] / (rows["channels"] * rows["positions"])
        return np.asarray(scaled, dtype=np.float64).reshape(-1, rows["channel"].nunique())


class _Sums(NamedTuple):
    """At one node: its shape and float64 (2, steps + 1, channels), against the clean image and the step before."""

    shape: tuple[int, ...]
    squared: Tensor


def collect_increments(
    model: nn.Module,
    dataset: Dataset,
    attack: Attack,
    nodes: Sequence[str],
    *,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Increments:
    """Follow the attack step by step at `nodes`: one forward pass per step besides the attack's own.

    On the first batch it makes sure that recording leaves the logits as they are, see `nodes.check_neutral`.

    With the same batches and seed, the last step of an attack without restarts is the image that
    `AdversarialExamples` crafts.

    Args:
        model: what is attacked, images in [0, 1] to logits; left as it was.
        dataset: clean images.
        attack: one that hands out its steps.
        nodes: names of nodes, see `coprobe.nodes`.
        batch_size: images at once; None finds one that fits.
        device: where the model is.
        seed: of the attack, batch by batch.
        progress: called with the number of images after every batch.

    Raises:
        InputError: the attack hands out no steps; unknown node; no images.
        RunError: activations that are not finite; logits that recording changes.
    """
    if not isinstance(attack, StepAttack):
        stepping = ", ".join(entry.name for entry in ATTACKS.entries() if issubclass(entry.value, StepAttack))
        raise InputError(f"attack '{attack.spec}' does not hand out its steps; choose from {stepping}")
    nodes = list(dict.fromkeys(nodes))
    total: dict[str, _Sums] = {}

    def follow(start: int, stop: int) -> tuple[int, dict[str, _Sums]]:
        x, y = clean_images(dataset, start, stop, device)
        if start == 0:
            check_neutral(model, x, nodes)
        generator = attack_generator(seed, start, device)
        return stop - start, _follow(model, attack, nodes, x, y, generator)

    for images, sums in in_batches(len(dataset), follow, batch_size=batch_size, device=device):
        for node, (shape, squared) in sums.items():
            total[node] = _Sums(shape, total[node].squared + squared if node in total else squared)
        if progress:
            progress(images)
    if not total:
        raise InputError("no images to follow an attack on; raise --limit")
    frame = pd.concat(
        [_rows(node, resolve(model, node).channel or 0, total[node], len(dataset)) for node in nodes], ignore_index=True
    )
    frame.attrs.update({"attack": attack.spec, "shapes": {node: list(total[node].shape) for node in nodes}})
    return Increments(frame)


def _follow(
    model: nn.Module, attack: StepAttack, nodes: Sequence[str], x: Tensor, y: Tensor, generator: torch.Generator
) -> dict[str, _Sums]:
    clean = before = _activations(model, nodes, x)
    steps: dict[str, list[Tensor]] = {node: [] for node in nodes}
    for x_step in attack.steps(model, x, y, generator=generator):
        now = _activations(model, nodes, x_step)
        for node in nodes:
            against = (clean[node], before[node])
            steps[node].append(torch.stack([differences_squared(then, now[node]).sum(0) for then in against]))
        before = now
    return {node: _Sums(clean.shapes[node], torch.stack(steps[node], 1)) for node in nodes}


def _activations(model: nn.Module, nodes: Sequence[str], images: Tensor) -> Recording:
    with frozen(model), torch.no_grad(), record(model, nodes) as seen:
        model(images)
        return seen


def _rows(node: str, first: int, sums: _Sums, images: int) -> pd.DataFrame:
    if not sums.squared.isfinite().all():
        raise RunError(
            "activations are not finite (NaN or infinite), so the increments are undefined; "
            "check the weights and --mean/--std"
        )
    against_clean, against_before = sums.squared.cpu().numpy()
    against_before[0] = np.nan  # the start has no step before it
    steps, channels = against_clean.shape
    return pd.DataFrame(
        {
            "node": node,
            "channel": np.tile(np.arange(first, first + channels), steps),
            "step": np.repeat(np.arange(steps), channels),
            "channels": sums.shape[0],
            "positions": math.prod(sums.shape[1:]),
            "images": images,
            "difference_squared": against_clean.ravel(),
            "step_squared": against_before.ravel(),
        }
    )
