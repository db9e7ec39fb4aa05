"""What `diagnose` says of the signs of catastrophic overfitting: the options and the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from coprobe.cli.options import Budget, ReadingOptions, comma_separated
from coprobe.cli.output import print_table
from coprobe.core.files import TABLE_SUFFIXES, check_writable
from coprobe.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from coprobe.probe import Probe
    from coprobe.verdict.signs import SignTable

F = TypeVar("F", bound=Callable[..., Any])
#: Places of a quantity that stand in the table; of more, the largest few.
_PLACES, _LARGEST = 12, 2
#: The value of `--signs` that stands for all.
ALL = "all"


def _budgets(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...]:
    """A callback that reads `1,2,4` as budgets."""
    if value is None:
        return ()
    return tuple(Budget().convert(text, param, ctx) for text in comma_separated(ctx, param, value))


def _names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else comma_separated(ctx, param, value)


_signs_option = click.option(
    "--signs",
    "names",
    callback=_names,
    metavar="all|NAME,…",
    help="Measure these signs of CO as well, which 'coprobe signs' lists; all are those that need no --reference "
    "unless it is given.",
)
_budgets_option = click.option(
    "--sign-eps", "budgets", callback=_budgets, metavar="N,…",
    help="Radii of the sign accuracy-over-eps, as --eps.  [default: 1,2,4,8,16,32]",
)  # fmt: skip
_reference_option = click.option(
    "--reference", metavar="CHECKPOINT", help="A second checkpoint, for the sign that moves layers from there."
)
_images_option = click.option(
    "--per-image", type=click.Path(path_type=Path),
    help="Write what the signs are of every image (.parquet, .csv, .json).",
)  # fmt: skip


def sign_options(function: F) -> F:
    """`--signs`, `--sign-eps`, `--reference`, `--per-image`: the arguments of `SignOptions`."""
    return _signs_option(_budgets_option(_reference_option(_images_option(function))))


@dataclass(frozen=True)
class SignOptions:
    """What the options of `sign_options` were given as."""

    names: tuple[str, ...] | None
    budgets: tuple[float, ...]
    reference: str | None
    per_image: Path | None

    def __post_init__(self) -> None:
        """Find what can't be measured before the work."""
        if self.names is None:
            for flag, given in (
                ("--sign-eps", self.budgets), ("--reference", self.reference), ("--per-image", self.per_image)
            ):  # fmt: skip
                if given:
                    raise InputError(f"{flag}: no signs are measured; add --signs all")
            return
        from coprobe.verdict.signs import chosen

        chosen(self.wanted, has_reference=self.reference is not None)
        if self.per_image:
            check_writable(self.per_image, TABLE_SUFFIXES)

    def measure(self, probe: Probe, nodes: Sequence[str], attack: str, reading: ReadingOptions) -> SignTable:
        """The signs; the second checkpoint is read as the first."""
        other = None if self.reference is None else reading.read(self.reference)
        budgets = [budget / 255 for budget in self.budgets]
        return probe.signs(self.wanted, nodes=nodes, attack=attack, budgets=budgets, reference=other)

    @property
    def wanted(self) -> tuple[str, ...]:
        """The names, none of which stands for all."""
        return () if self.names is None or ALL in self.names else self.names


def print_signs(title: str, frame: pd.DataFrame) -> None:
    """A row for each number of the table of signs; numbers of several places share one."""
    rows = []
    seen = ""
    for (sign, quantity), values in frame.groupby(["sign", "quantity"], sort=False):
        first = values.iloc[0]
        show = shown(first["healthy"], first["collapsed"])
        rows.append(["" if sign == seen else f"{first['number']} {sign}", str(quantity), _values(values), show])
        seen = str(sign)
    print_table(title, ["sign", "number", "mean, 95 % interval", "healthy → CO-affected"], rows, left=4)


def shown(healthy: str, collapsed: str) -> str:
    """What healthy and CO-affected models show, as far as that is known."""
    return f"{healthy or '?'} → {collapsed or '?'}" if healthy or collapsed else "–"


def _values(rows: pd.DataFrame) -> str:
    if len(rows) == 1:
        row = rows.iloc[0]
        place = f"{row['at']}: " if row["at"] else ""
        interval = f" ({_short(row['low'])} – {_short(row['high'])})" if not math.isnan(row["low"]) else ""
        return f"{place}{_short(row['value'])}{interval}"
    several = rows if len(rows) <= _PLACES else rows.nlargest(_LARGEST, "value")
    cells = ", ".join(f"{at}: {_short(value)}" for at, value in zip(several["at"], several["value"], strict=True))
    return cells if len(rows) <= _PLACES else f"largest of {len(rows)}: {cells}"


def _short(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}"
