"""Channel statistics of a checkpoint: V_act (Eq. 5), per-channel V_act and T_act (Eq. 6), channel variance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import nn

from coprobe.attacks.examples import CLEAN, AdversarialBatch
from coprobe.core.defaults import ALPHA
from coprobe.core.engine import frozen
from coprobe.core.files import write_table
from coprobe.errors import InputError
from coprobe.metrics.accumulator import SUMS, ChannelAccumulator, image_sums
from coprobe.metrics.metric import METRICS, AttackMetric
from coprobe.metrics.reading import read_frame
from coprobe.nodes import CHECKED, check_neutral, record, resolve

#: How the sum over images in Eq. 6 is read, see `ChannelStatistics.t_act`.
READINGS = ("mean", "sum", "mse")


@dataclass(frozen=True)
class ChannelStatistics:
    """One row per (node, channel) with raw sums, from which every reading can be computed.

    `frame` has the columns node, channel, channels (N), positions (H·W), images, norm (the node's sum of
    Eq. 5), and the sums of `SUMS`. `frame.attrs` says what made it (attack, data, checkpoint) and the shape of
    each node's activation, channels first; and `rows`, of nodes where an image has several in the first axis. A node
    like `A:12` has the one row of channel 12, with the N of the whole node and the norm of this channel alone.
    """

    frame: pd.DataFrame

    def node(self, name: str) -> pd.DataFrame:
        """The rows of one node, in the order of the channels; raises `InputError` if it was not recorded."""
        rows = self.frame[self.frame["node"] == name]
        if rows.empty:
            recorded = ", ".join(self.frame["node"].unique())
            raise InputError(f"node '{name}' is not in these statistics, which hold {recorded}; record it as well")
        return rows.reset_index(drop=True)

    def s(self, name: str) -> np.ndarray:
        """S_k = Σ_x V^k(x) / (N·H·W), un-squashed, float64 (channels,) (Fig. 10's quantity)."""
        rows = self.node(name)
        return np.asarray(rows["difference_squared"] / (rows["channels"] * rows["positions"]), dtype=np.float64)

    def t_act(self, name: str, *, alpha: float = ALPHA, reading: str = "mean") -> np.ndarray:
        """T_act per channel (Eq. 6), float64 (channels,) in [0, 1].

        Args:
            name: the node.
            alpha: the factor inside tanh; 100 in the paper.
            reading: `mean` divides by the number of images (the default, since only it fits both Figs. 3 and 10),
                `sum` is the literal Eq. 6, `mse` the mean squared difference (N read as the number of images).

        Raises:
            InputError: unknown reading or node.
        """
        rows = self.node(name)
        images, channels = rows["images"].to_numpy(), rows["channels"].to_numpy()
        scale = {"sum": 1.0, "mean": 1 / images, "mse": channels / images}
        if reading not in scale:
            raise InputError(f"reading '{reading}' of Eq. 6 is unknown; choose from {', '.join(READINGS)}")
        return np.tanh(alpha * self.s(name) * scale[reading])

    def v_act(self, name: str) -> float:
        """V_act of the node (Eq. 5): mean over images of the unsquared L2 norm of the difference."""
        rows = self.node(name)
        return float(rows["norm"].iloc[0] / rows["images"].iloc[0])

    def variance(self, name: str, of: str = "adversarial") -> np.ndarray:
        """Variance of each channel over images and positions, float64 (channels,).

        Args:
            name: the node.
            of: `adversarial` or `clean` activations.
        """
        rows = self.node(name)
        count = rows["images"] * rows["positions"]
        mean = rows[of] / count
        return np.asarray((rows[f"{of}_squared"] / count - mean**2).clip(lower=0), dtype=np.float64)

    def table(self, *, alpha: float = ALPHA, reading: str = "mean") -> pd.DataFrame:
        """Derived values, one row per (node, channel), the most salient channel of each node first."""
        parts = []
        for name in self.frame["node"].unique():
            rows = self.node(name)
            count = rows["images"] * rows["positions"]
            part = rows[["node", "channel"]].copy()
            part["t_act"] = self.t_act(name, alpha=alpha, reading=reading)
            part["v_act"] = rows["difference_squared"] / rows["images"]
            part["mse"] = rows["difference_squared"] / count
            part["mean_clean"] = rows["clean"] / count
            part["mean_change"] = rows["difference"] / count
            part["variance_clean"] = self.variance(name, "clean")
            part["variance_adversarial"] = self.variance(name, "adversarial")
            part["images"] = rows["images"]
            parts.append(part.sort_values("t_act", ascending=False, kind="stable"))
        table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["node", "channel", "t_act"])
        table.attrs = {**self.frame.attrs, "alpha": alpha, "reading": reading}
        return table

    def write(self, path: str | Path) -> None:
        """Write the raw sums as Parquet, CSV or JSON, by suffix."""
        write_table(self.frame, path)

    @staticmethod
    def read(path: str | Path) -> ChannelStatistics:
        """Read what `write` wrote, by suffix; raises `InputError` if it is no such file."""
        return ChannelStatistics(read_frame(path, "channel statistics", {*NO_STATISTICS.frame}))


#: Those of no node at all.
NO_STATISTICS = ChannelStatistics(
    pd.DataFrame(columns=["node", "channel", "channels", "positions", "images", "norm", *SUMS])
)


@METRICS.register(
    "activations",
    summary="per-channel differences between clean and adversarial activations: V_act, T_act, variance",
    source="Eqs. 5 and 6",
)
@dataclass(kw_only=True)
class ChannelActivations(AttackMetric[ChannelStatistics]):
    """Compares clean with adversarial activations at `nodes`: two forward passes per batch.

    On its first images it makes sure that recording leaves the logits as they are, see `nodes.check_neutral`.

    Args:
        nodes: names of nodes, see `coprobe.nodes`.

    Raises:
        InputError: in `update`, unknown node; in `compute`, no images.
        RunError: in `update`, logits that recording changes; in `compute`, activations that are not finite.
    """

    nodes: tuple[str, ...] = ("A",)
    name: ClassVar[str] = "activations"

    def prepare(self, model: nn.Module) -> None:
        """Begin with sums of nothing."""
        self._model = model
        self._nodes = tuple(dict.fromkeys(self.nodes))
        self._accumulators = {name: ChannelAccumulator() for name in self._nodes}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._rows: dict[str, int] = {}

    def update(self, batch: AdversarialBatch) -> None:
        """Record both images of every pair."""
        if not self._shapes:
            check_neutral(self._model, batch.images[CLEAN][:CHECKED], self._nodes)
        with frozen(self._model), torch.no_grad(), record(self._model, self._nodes) as seen:
            self._model(batch.images[CLEAN])
            clean = dict(seen)
            self._model(batch.images[self.attack])
        # of all nodes before any is added, since memory can run out here as well
        sums = {name: image_sums(clean[name], seen[name]) for name in self._nodes}
        for name in self._nodes:
            self._accumulators[name].add(batch.start, sums[name], math.prod(clean[name].shape[2:]))
        self._shapes, self._rows = dict(seen.shapes), {name: rows for name, rows in seen.rows.items() if rows > 1}

    @property
    def state(self) -> Any:
        """The states of the accumulators by node, and the shapes and rows of the activations."""
        return {name: one.state for name, one in self._accumulators.items()}, self._shapes, self._rows

    def merge_state(self, state: Any) -> None:
        """Add up node by node."""
        states, shapes, rows = state
        for name, one in states.items():
            self._accumulators[name].merge_state(one)
        self._shapes, self._rows = self._shapes or shapes, self._rows or rows

    def compute(self) -> ChannelStatistics:
        """The table of sums."""
        if not self._shapes:
            raise InputError("no images to take statistics of; raise --limit")
        parts = []
        for name in self._nodes:
            (channels, *_), first = self._shapes[name], resolve(self._model, name).channel or 0
            sums = self._accumulators[name].compute()
            numbers = range(first, first + len(sums["difference"]))
            parts.append(pd.DataFrame({"node": name, "channel": numbers, "channels": channels, **sums}))
        frame = pd.concat(parts, ignore_index=True)
        frame.attrs.update({"attack": self.attack, "shapes": {name: list(self._shapes[name]) for name in self._nodes}})
        if self._rows:
            frame.attrs["rows"] = self._rows
        return ChannelStatistics(frame)

    @staticmethod
    def restored(frame: pd.DataFrame) -> ChannelStatistics:
        """The statistics around their table."""
        return ChannelStatistics(frame)
