"""Sign 10: whether few channels carry what an attack changes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from coprobe.core.defaults import ALPHA
from coprobe.metrics.accumulator import differences_squared
from coprobe.verdict.signs.base import SIGNS, ImageSign, Key, Quantity, Values, share
from coprobe.verdict.signs.neighbourhood import Neighbourhood


@SIGNS.register(
    "channel-salience",
    summary="how far activations at A…E move under an attack, and how unevenly over the channels",
    source="the paper (Eqs. 5 and 6); He et al. 2023 (channel variance)",
    number=10,
    cost="2 forward, beside the probing attack",
)
@dataclass(frozen=True)
class ChannelSalience(ImageSign):
    """All numbers are of single images, and so is T_act here: the mean over images is inside Eq. 6's tanh, not here.

    Args:
        top: the share of the channels that count as few.
    """

    top: float = 0.1
    name: ClassVar[str] = "channel-salience"
    formula: ClassVar[str] = (
        "V_k = ‖M_k(x) − M_k(x + δ_P)‖₂²: √ΣV_k; max tanh(100 V_k / NHW); share of ΣV_k held by the top tenth of the "
        "channels; Gini index of V_k; the channel of the largest V_k; share of Σ Var M_k(x + δ_P) held by the top tenth"
    )
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity("v_act", "length of activations", "small", "large", "bootstrap"),
        Quantity("t_act", "largest of the channels", "near 0", "near 1"),
        Quantity("top-tenth", "share of ΣV_k", "a few tenths", "near 1"),
        Quantity("gini", "Gini index", "even", "near 1"),
        Quantity("channel", "share of images in which it moves most", "small", "near 1", "wilson"),
        Quantity("variance", "share of the channels' variance", "", "higher"),
    )
    sees_probing: ClassVar[bool] = True
    at_nodes: ClassVar[bool] = True

    def values(self, here: Neighbourhood) -> Values:
        """From the activations at x and at x + δ_P."""
        clean, moved = here.activations
        found: Values = {}
        for node in here.nodes:
            channels, positions = moved[node].shape[1], math.prod(moved[node].shape[2:])
            v = differences_squared(clean[node], moved[node])
            spread = moved[node].reshape(len(here), channels, positions).double().var(2, correction=0)
            found |= {
                Key("v_act", node): v.sum(1).sqrt(),
                Key("t_act", node): torch.tanh(ALPHA * v.amax(1) / (channels * positions)),
                Key("top-tenth", node): self._held(v),
                Key("gini", node): gini(v),
                Key("channel", node): share(v.argmax(1), v.any(1)),
                Key("variance", node): self._held(spread),
            }
        return found

    def of_all(self, values: Values) -> Values:
        """Name the channel that moves most in most images, instead of one for each image."""
        finished: Values = {}
        for key, numbers in values.items():
            if key.quantity != "channel":
                finished[key] = numbers
                continue
            counted = ~numbers.isnan()
            # of several equally frequent ones the first
            often = int(numbers[counted].long().bincount().argmax()) if counted.any() else 0
            finished[Key("channel", f"{key.at}:{often}")] = share(numbers == often, counted)
        return finished

    def _held(self, values: Tensor) -> Tensor:
        """The share of the sum that is held by the largest ones."""
        count = max(1, round(self.top * values.shape[1]))
        total = values.sum(1)
        return share(values.topk(count, 1).values.sum(1) / total, total > 0)


def gini(values: Tensor) -> Tensor:
    """The Gini index of each row of numbers ≥ 0: 0 if all are equal, 1 − 1/N if one holds all; NaN for zeros."""
    count = values.shape[1]
    weights = 2 * torch.arange(1, count + 1, device=values.device) - count - 1
    total = values.sum(1)
    return share((weights * values.sort(1).values).sum(1) / (count * total), total > 0)
