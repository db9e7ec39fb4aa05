"""How far each channel moves at every step of an attack (Fig. 10): one pass, float64, constant memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from coprobe.attacks.examples import CLEAN, AdversarialBatch
from coprobe.core.engine import frozen
from coprobe.core.files import write_table
from coprobe.errors import InputError, NotFiniteError
from coprobe.metrics.accumulator import differences_squared
from coprobe.metrics.metric import METRICS, AttackMetric
from coprobe.metrics.reading import read_frame
from coprobe.metrics.sums import ImageSums
from coprobe.nodes import CHECKED, Recording, check_neutral, record, resolve

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


@METRICS.register(
    "increments",
    summary="how far each channel is from its clean activation at every step of an attack",
    source="Fig. 10",
)
@dataclass(kw_only=True)
class ActivationIncrements(AttackMetric[Increments]):
    """Follows an attack step by step at `nodes`: one forward pass per step besides the attack's own.

    On its first images it makes sure that recording leaves the logits as they are, see `nodes.check_neutral`.

    Args:
        nodes: names of nodes, see `coprobe.nodes`.
        attack: one that hands out its steps; of several restarts the first is followed.

    Raises:
        InputError: in `update`, unknown node; in `compute`, no images.
        NotFiniteError: in `update`, logits that recording changes; in `compute`, activations that are not finite.
    """

    nodes: tuple[str, ...] = ("A",)
    name: ClassVar[str] = "increments"
    follows: ClassVar[bool] = True

    def prepare(self, model: nn.Module) -> None:
        """Begin with sums of nothing."""
        self._model = model
        self._nodes = tuple(dict.fromkeys(self.nodes))
        self._sums = {node: ImageSums() for node in self._nodes}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._images = 0

    def update(self, batch: AdversarialBatch) -> None:
        """Record the clean images and every iterate."""
        if not self._shapes:
            check_neutral(self._model, batch.images[CLEAN][:CHECKED], self._nodes)
        clean = before = self._activations(batch.images[CLEAN])
        squared: dict[str, list[Tensor]] = {node: [] for node in self._nodes}
        for x_t in batch.trajectories[self.attack]:
            now = self._activations(x_t)
            for node in self._nodes:
                against = (clean[node], before[node])
                squared[node].append(torch.stack([differences_squared(then, now[node]) for then in against], 1))
            before = now
        # images, 2, steps + 1, channels; of all nodes before any is added, since memory can run out here as well
        stacked = {node: torch.stack(squared[node], 2) for node in self._nodes}
        for node in self._nodes:
            self._sums[node].add(batch.start, stacked[node])
        self._images += len(batch.labels)
        self._shapes = dict(clean.shapes)

    def _activations(self, images: Tensor) -> Recording:
        with frozen(self._model), torch.no_grad(), record(self._model, self._nodes) as seen:
            self._model(images)
            return seen

    @property
    def state(self) -> Any:
        """Sums by node, shapes of the activations, and the number of images."""
        return {node: sums.state for node, sums in self._sums.items()}, self._shapes, self._images

    def merge_state(self, state: Any) -> None:
        """Add up node by node."""
        sums, shapes, images = state
        for node, one in sums.items():
            self._sums[node].merge_state(one)
        self._shapes = self._shapes or shapes
        self._images += images

    def compute(self) -> Increments:
        """The table of sums."""
        if not self._images:
            raise InputError("no images to follow an attack on; raise --limit")
        frame = pd.concat([self._rows(node) for node in self._nodes], ignore_index=True)
        shapes = {node: list(self._shapes[node]) for node in self._nodes}
        frame.attrs.update({"attack": self.attack, "shapes": shapes})
        return Increments(frame)

    @staticmethod
    def restored(frame: pd.DataFrame) -> Increments:
        """The increments around their table."""
        return Increments(frame)

    def _rows(self, node: str) -> pd.DataFrame:
        squared = self._sums[node].total()
        assert squared is not None
        if not squared.isfinite().all():
            raise NotFiniteError(
                "activations are not finite (NaN or infinite), so the increments are undefined; "
                "check the weights and --mean/--std"
            )
        against_clean, against_before = squared.numpy()
        against_before[0] = np.nan  # the start has no step before it
        steps, channels = against_clean.shape
        first = resolve(self._model, node).channel or 0
        return pd.DataFrame(
            {
                "node": node,
                "channel": np.tile(np.arange(first, first + channels), steps),
                "step": np.repeat(np.arange(steps), channels),
                "channels": self._shapes[node][0],
                "positions": math.prod(self._shapes[node][1:]),
                "images": self._images,
                "difference_squared": against_clean.ravel(),
                "step_squared": against_before.ravel(),
            }
        )
