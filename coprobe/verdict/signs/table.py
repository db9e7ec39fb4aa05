"""The table of signs: of each number the mean over the images with its interval, and what models show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from coprobe.core.randomness import key_of
from coprobe.errors import InputError
from coprobe.metrics.accuracy import wilson
from coprobe.nodes import NO_NODES
from coprobe.verdict.signs.base import SIGNS, ModelSign, Sign, listed

#: Of a two-sided 95 % interval of the normal distribution.
_Z95 = 1.959963984540054
#: Resamples of a bootstrap, and how many are drawn together.
_RESAMPLES, _TOGETHER = 1000, 50
_COLUMNS = [
    "number", "sign", "quantity", "at", "value", "low", "high", "interval", "n", "unit", "healthy", "collapsed",
    "source",
]  # fmt: skip


@dataclass(frozen=True)
class SignTable:
    """What the signs of a model are.

    Attributes:
        frame: a row per number: number (of the sign, in the order of the table of signs), sign, quantity, at (node,
            class, budget as people write it, layer, group; empty for one place only), value, low and high (its 95 %
            interval; NaN where there is none), interval (how it was found, see `Quantity`), n (how many images are
            counted; for weights, how many there are), unit, healthy and collapsed (what such models show), source.
        images: a row per image and number of the signs that are means over images: image (its index in the data set),
            sign, quantity, at, value (NaN where the image is not counted).
    """

    frame: pd.DataFrame
    images: pd.DataFrame

    def value(self, sign: str, quantity: str = "", at: str = "") -> float:
        """One number; without a quantity the sign's first. `InputError` if it was not measured."""
        quantity = quantity or SIGNS[sign].quantities[0].name
        rows = self.frame.query("sign == @sign and quantity == @quantity and at == @at")
        if rows.empty:
            place = f" at {at}" if at else ""
            raise InputError(f"{quantity}{place} of sign '{sign}' was not measured")
        return float(rows["value"].iloc[0])


def table_of(signs: Iterable[Sign], images: pd.DataFrame, others: pd.DataFrame, seed: int) -> SignTable:
    """The table from what was measured.

    Args:
        signs: those that were asked for.
        images: what `ImageSigns` computed.
        others: the rows of signs that are no means over images, with a column `sign`.
        seed: of the bootstrap.
    """
    names = {sign.name for sign in signs}
    parts = []
    for entry in listed():
        if entry.name not in names:
            continue
        sign = entry.value
        mine = others[others["sign"] == entry.name] if issubclass(sign, ModelSign) else _means(sign, images, seed)
        about = pd.DataFrame([vars(quantity) for quantity in sign.quantities]).rename(columns={"name": "quantity"})
        parts.append(mine.merge(about, on="quantity", how="left").assign(
            sign=entry.name, number=entry.facts["number"], source=entry.source
        ))  # fmt: skip
    frame = pd.concat(parts, ignore_index=True)[_COLUMNS].astype({"n": int})
    frame.attrs = images.attrs
    return SignTable(frame, images)


def _means(sign: type[Sign], images: pd.DataFrame, seed: int) -> pd.DataFrame:
    rows = []
    intervals = {quantity.name: quantity.interval for quantity in sign.quantities}
    own = images[images["sign"] == sign.name]
    for (quantity, at), values in own.groupby(["quantity", "at"], sort=False)["value"]:
        counted = values.to_numpy()[~np.isnan(values.to_numpy())]
        low, high = interval_of(counted, intervals[quantity], seed)
        mean = float(counted.mean()) if len(counted) else float("nan")
        rows.append({"quantity": quantity, "at": at, "value": mean, "low": low, "high": high, "n": len(counted)})
    return pd.DataFrame(rows)


def interval_of(values: np.ndarray, kind: str, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean of numbers; NaN for no numbers.

    Args:
        values: float64 (images,).
        kind: `wilson` for zeros and ones; `normal`, with the standard deviation of the sample; or `bootstrap`, the
            percentiles of 1,000 means of as many images drawn with replacement.
        seed: of the bootstrap.
    """
    n = len(values)
    if not n:
        return float("nan"), float("nan")
    if kind == "wilson":
        return wilson(float(values.sum()), n)
    mean = float(values.mean())
    if n == 1 or (values == values[0]).all():
        return (mean, mean) if n > 1 else (float("nan"), float("nan"))
    if kind == "normal":
        half = _Z95 * float(values.std(ddof=1)) / n**0.5
        return mean - half, mean + half
    generator = np.random.default_rng(key_of(seed, "bootstrap"))
    means = [values[generator.integers(n, size=(_TOGETHER, n))].mean(1) for _ in range(_RESAMPLES // _TOGETHER)]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def chosen(names: Sequence[str], *, has_reference: bool, has_nodes: bool = True) -> list[type[Sign]]:
    """The signs of these names, in the order of the table; none means all that can be measured.

    Args:
        names: as they are registered.
        has_reference: whether there is a second checkpoint.
        has_nodes: whether the network has nodes to look at.

    Raises:
        InputError: an unknown sign, or one that needs what there is not.
    """
    for sign in map(SIGNS.__getitem__, names):
        if sign.needs_reference and not has_reference:
            raise InputError(f"sign '{sign.name}' compares with a second checkpoint; pass --reference")
        if sign.at_nodes and not has_nodes:
            raise InputError(f"sign '{sign.name}': {NO_NODES}; --node takes module paths")
    able = [
        entry.value
        for entry in listed()
        if (has_reference or not entry.value.needs_reference) and (has_nodes or not entry.value.at_nodes)
    ]
    return [sign for sign in able if not names or sign.name in names]
