"""Channel statistics of a checkpoint: V_act (Eq. 5), per-channel V_act and T_act (Eq. 6), channel variance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from coprobe.attacks.examples import CLEAN, AdversarialBatch
from coprobe.engine import frozen
from coprobe.errors import InputError
from coprobe.files import write_table
from coprobe.nodes import check_neutral, record, resolve
from coprobe.statistics.accumulator import SUMS, ChannelAccumulator
from coprobe.statistics.reading import read_frame

#: How the sum over images in Eq. 6 is read, see `ChannelStatistics.t_act`.
READINGS = ("mean", "sum", "mse")
ALPHA = 100.0


@dataclass(frozen=True)
class ChannelStatistics:
    """One row per (node, channel) with raw sums, from which every reading can be computed.

    `frame` has the columns node, channel, channels (N), positions (H·W), images, norm (the node's sum of
    Eq. 5), and the sums of `SUMS`. `frame.attrs` says what made it (attack, data, checkpoint) and the shape of
    each node's activation, channels first. A node like `A:12` has the one row of channel 12, with the N of the
    whole node and the norm of this channel alone.
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
        table = pd.concat(parts, ignore_index=True)
        table.attrs = {**self.frame.attrs, "alpha": alpha, "reading": reading}
        return table

    def write(self, path: str | Path) -> None:
        """Write the raw sums as Parquet, CSV or JSON, by suffix."""
        write_table(self.frame, path)

    @staticmethod
    def read(path: str | Path) -> ChannelStatistics:
        """Read what `write` wrote, by suffix; raises `InputError` if it is no such file."""
        columns = {"node", "channel", "channels", "positions", "images", "norm", *SUMS}
        return ChannelStatistics(read_frame(path, "channel statistics", columns))


def collect(
    model: nn.Module,
    batches: Iterable[AdversarialBatch],
    nodes: Sequence[str],
    attack: str,
    *,
    facts: dict[str, Any] | None = None,
) -> ChannelStatistics:
    """Compare clean with adversarial activations at `nodes`: two forward passes per batch, one pass over the data.

    On the first batch it makes sure that recording leaves the logits as they are, see `nodes.check_neutral`.

    Args:
        model: the model, run in evaluation mode without gradients and left as it was.
        batches: an `AdversarialExamples`, or any iterable of its batches.
        nodes: names of nodes, see `coprobe.nodes`.
        attack: the spec under which the batches hold the adversarial images.
        facts: goes into `frame.attrs`.

    Raises:
        InputError: unknown node; no images.
        RunError: activations that are not finite; logits that recording changes.
    """
    accumulators: dict[str, ChannelAccumulator] = {}
    nodes = list(dict.fromkeys(nodes))
    shapes: dict[str, tuple[int, ...]] = {}
    for batch in batches:
        if not accumulators:
            check_neutral(model, batch.images[CLEAN], nodes)
        with frozen(model), torch.no_grad(), record(model, nodes) as seen:
            model(batch.images[CLEAN])
            clean = dict(seen)
            shapes = seen.shapes
            model(batch.images[attack])
            for name in nodes:
                if name not in accumulators:
                    # Of several processes each may measure alone; to wait for the others would be to wait forever.
                    accumulators[name] = ChannelAccumulator(clean[name].shape[1], sync_on_compute=False)
                    accumulators[name].to(clean[name].device)
                accumulators[name].update(clean[name], seen[name])
    if not accumulators:
        raise InputError("no images to take statistics of; raise --limit")
    parts = []
    for name in nodes:
        (channels, *_), first = shapes[name], resolve(model, name).channel or 0
        sums = accumulators[name].compute()
        numbers = range(first, first + len(sums["difference"]))
        parts.append(pd.DataFrame({"node": name, "channel": numbers, "channels": channels, **sums}))
    frame = pd.concat(parts, ignore_index=True)
    frame.attrs.update({**(facts or {}), "attack": attack, "shapes": {name: list(shapes[name]) for name in nodes}})
    return ChannelStatistics(frame)
