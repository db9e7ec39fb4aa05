"""`coprobe activations`."""

from __future__ import annotations

import math
from typing import Any

import click

from coprobe.cli.options import Number, ProbingOptions, attack_option, debug_option, probing_options
from coprobe.cli.output import Output, output_options, print_table
from coprobe.core.defaults import ALPHA
from coprobe.core.text import storable


@click.command()
@click.argument("checkpoint")
@click.option(
    "--node",
    "nodes",
    multiple=True,
    help="A…E, A:12 for a channel, a module path, or a place of `coprobe nodes`; repeatable.  [default: A…E]",
)
@attack_option
@click.option(
    "--alpha",
    type=Number(0, math.inf, min_open=True, max_open=True),
    default=ALPHA,
    show_default=True,
    help="Factor inside tanh of Eq. 6.",
)
@click.option("--reading", default="mean", show_default=True, help="How Eq. 6 sums over images: mean, sum or mse.")
@click.option("--top", type=click.IntRange(1), default=8, show_default=True, help="Channels to list per node.")
@probing_options
@output_options
@debug_option
def command(
    checkpoint: str,
    nodes: tuple[str, ...],
    attack: str,
    alpha: float,
    reading: str,
    top: int,
    as_json: bool,
    out: Any,
    plot: Any,
    **probing: Any,
) -> None:
    """Per-channel activation differences under an attack, the salient channels first.

    T_act (Eq. 6) is near 1 for channels that jump between clean and adversarial images, and near 0 for the
    others; V_act is the mean squared L2 difference of the channel.

    \b
    Example:
      coprobe activations runs/co/checkpoint.pt --node A --limit 256 --plot channels.png
    """
    from coprobe.figures import fig03
    from coprobe.nodes import describe_shape

    output = Output(as_json, out, plot)
    probe = ProbingOptions(**probing).probe(checkpoint)
    statistics = probe.activations(nodes, attack)
    table = statistics.table(alpha=alpha, reading=reading)
    v_act = {node: statistics.v_act(node) for node in table["node"].unique()}
    if output.for_people:
        rows = [
            [
                row["node"],
                str(row["channel"]),
                f"{row['t_act']:.3f}",
                f"{row['v_act']:.3g}",
                f"{row['mean_change']:+.3f}",
            ]
            for row in table.groupby("node", sort=False).head(top).to_dict("records")
        ]
        title = f"{table.attrs['attack']}, {probe.caption}"
        header = ["node", "channel", "T_act", "V_act", "mean change"]
        folded = table.attrs.get("rows", {})
        shapes = {
            node: f" ({describe_shape(shape, folded.get(node, 1))})"
            for node, shape in table.attrs.get("shapes", {}).items()
        }
        summary = ", ".join(f"{node} {value:.3g}{shapes.get(node, '')}" for node, value in v_act.items())
        print_table(title, header, rows, f"V_act of the whole node (Eq. 5): {summary}")
    label = storable(probe.checkpoint.path.name) if probe.checkpoint.path else "model"
    output.write(table, lambda: fig03.draw(table.assign(run=label, kind=""), about=probe.caption), v_act=v_act)
