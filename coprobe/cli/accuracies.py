"""What `evaluate` and `transfer` share: attacks and noise as options, and the table of accuracies."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from coprobe.cli.options import comma_separated
from coprobe.cli.output import percent, print_table

if TYPE_CHECKING:
    import pandas as pd

    from coprobe.evaluation import Noise

F = TypeVar("F", bound=Callable[..., Any])

_attacks_option = click.option(
    "--attacks",
    default="fgsm,pgd:10",
    show_default=True,
    callback=comma_separated,
    help="fgsm, pgd:50, cw, pgd-eot, apgd-ce, apgd-t, aa, …, with options: pgd:50:restarts=10:step-size=4.",
)
_noise_option = click.option(
    "--noise", "noises", multiple=True, help="none, uniform:16 or gauss:8, added after the attack; repeatable."
)
_draws_option = click.option(
    "--noise-draws", type=click.IntRange(1), default=1, show_default=True, help="Draws of every noise, averaged."
)


def measuring_options(function: F) -> F:
    """`--attacks`, `--noise`, `--noise-draws`."""
    return _attacks_option(_noise_option(_draws_option(function)))


def parse_noises(specs: tuple[str, ...]) -> list[Noise]:
    """What `--noise` was given as; none at all means no noise."""
    from coprobe.evaluation import NO_NOISE, Noise

    return [Noise.parse(spec) for spec in specs] or [NO_NOISE]


def print_accuracies(title: str, frame: pd.DataFrame) -> None:
    """A table of the rows of `Evaluation.over_draws`; the spread over several draws stands beside the mean."""
    rows = [
        [
            row["attack"],
            row["noise"],
            percent(row["accuracy"]) + (f" ± {percent(row['spread'])}" if row["spread"] >= 0 else ""),
            f"{percent(row['low'])} – {percent(row['high'])}",
        ]
        for row in frame.to_dict("records")
    ]
    print_table(title, ["attack", "noise", "accuracy", "95 % interval"], rows, left=2)
