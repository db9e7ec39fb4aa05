"""What `evaluate` and `transfer` share: attacks and noise as options, and the tables of accuracies and of stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar

import click

from coprobe.cli.options import comma_separated
from coprobe.cli.output import interval, percent, print_table
from coprobe.core.defaults import ATTACKS
from coprobe.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from coprobe.metrics.accuracy import Noise

F = TypeVar("F", bound=Callable[..., Any])

_attacks_option = click.option(
    "--attacks",
    default=",".join(ATTACKS),
    show_default=True,
    callback=comma_separated,
    help="fgsm, pgd:50, cw, pgd-eot, apgd-ce, apgd-t, aa:fast, aa, …, with options: pgd:50:restarts=10:step-size=4, "
    "pgd:target=random.",
)
_members_option = click.option(
    "--aa-members",
    callback=lambda ctx, param, value: () if value is None else comma_separated(ctx, param, value),
    help="Which of apgd-ce, apgd-t, fab-t, square run in every aa of --attacks.  [default: all]",
)
_noise_option = click.option(
    "--noise", "noises", multiple=True, help="none, uniform:16 or gauss:8, added after the attack; repeatable."
)
_draws_option = click.option(
    "--noise-draws", type=click.IntRange(1), default=1, show_default=True, help="Draws of every noise, averaged."
)


def measuring_options(function: F) -> F:
    """`--attacks`, `--aa-members`, `--noise`, `--noise-draws`."""
    return _attacks_option(_members_option(_noise_option(_draws_option(function))))


def with_members(attacks: tuple[str, ...], members: tuple[str, ...]) -> tuple[str, ...]:
    """`--attacks`, in which every `aa` has the members of `--aa-members`; none at all leave it as it is.

    Raises:
        InputError: members without an `aa`.
    """
    if members and "aa" not in attacks:
        raise InputError("--aa-members: --attacks names no aa; add it, or leave out --aa-members")
    chosen = f"aa:members={'+'.join(members)}" if members else "aa"
    return tuple(chosen if spec == "aa" else spec for spec in attacks)


def parse_noises(specs: tuple[str, ...]) -> list[Noise]:
    """What `--noise` was given as; none at all means no noise."""
    from coprobe.metrics.accuracy import NO_NOISE, Noise

    return [Noise.parse(spec) for spec in specs] or [NO_NOISE]


def print_accuracies(title: str, frame: pd.DataFrame) -> None:
    """A table of the rows of `Evaluation.table`; the spread over several draws stands beside the mean."""
    rows = [
        [
            row["attack"],
            row["noise"],
            percent(row["accuracy"]) + (f" ± {percent(row['spread'])}" if row["spread"] >= 0 else ""),
            interval(row["low"], row["high"]),
        ]
        for row in frame.to_dict("records")
    ]
    print_table(title, ["attack", "noise", "accuracy", "95 % interval"], rows, left=2)


def print_stages(of: str, stages: Sequence[Mapping[str, Any]]) -> None:
    """A table for every attack that has stages: what each of its members did with the images that were left to it."""
    from coprobe.attacks import ATTACKS

    for attack, rows in groupby(stages, lambda row: row["attack"]):
        cells = [
            [
                ATTACKS[row["member"]].title,
                f"{row['images']:,}",
                f"{row['broken']:,}",
                f"{100 * row['accuracy']:.2f}",
                f"{100 * row['gained']:.2f}",
                f"{row['seconds']:.1f}",
                percent(row["share"]),
            ]
            for row in rows
        ]
        header = ["stage", "images", "broken", "accuracy after it", "points gained", "seconds", "% of the time"]
        print_table(f"{of}: the stages of {attack}", header, cells)
