"""`coprobe increments`."""

from __future__ import annotations

from typing import Any

import click

from coprobe.cli.options import ProbingOptions, debug_option, probing_options
from coprobe.cli.output import Output, output_options, print_table
from coprobe.core.defaults import PROBING_ATTACK
from coprobe.core.text import storable


@click.command()
@click.argument("checkpoint")
@click.option(
    "--node",
    "nodes",
    multiple=True,
    help="A…E, A:12 for a channel, a module path, or a place of `coprobe nodes`; repeatable.  [default: A]",
)
@click.option(
    "--attack",
    default=PROBING_ATTACK,
    show_default=True,
    help="One that hands out its steps: fgsm, pgd, cw, pgd-eot, with options.",
)
@probing_options
@output_options
@debug_option
def command(
    checkpoint: str, nodes: tuple[str, ...], attack: str, as_json: bool, out: Any, plot: Any, **probing: Any
) -> None:
    """Sum over the images of each channel's squared change (S_k, Eq. 6 without tanh and α) at every step of an attack.

    s is the change since the clean image, s_step since the step before; step 0 is the attack's random start. S_k
    grows with the number of images: compare at equal --limit.

    \b
    Example:
      coprobe increments runs/co --node A --node B --limit 256 --plot increments.png
    """
    from coprobe.figures import fig10

    output = Output(as_json, out, plot)
    probe = ProbingOptions(**probing).probe(checkpoint)
    increments = probe.increments(nodes or ("A",), attack)
    table = increments.table()
    if output.for_people:
        rows = []
        for node in table["node"].unique():
            moved, stepped = increments.s(node), increments.s_step(node)
            channels = table.loc[table["node"] == node, "channel"].unique()
            for step, (s, s_step) in enumerate(zip(moved, stepped, strict=True)):
                last = f"{s_step.sum():.3g}" if step else ""
                rows.append([node, str(step), f"{s.sum():.3g}", last, f"{s.max():.3g}", str(channels[s.argmax()])])
        header = ["node", "step", "sum of S_k", "since step before", "largest S_k", "channel"]
        print_table(f"{table.attrs['attack']}, {probe.caption}", header, rows)
    label = storable(probe.checkpoint.path.name) if probe.checkpoint.path else "model"
    drawn = table[table["step"] > 0].assign(model=label, kind="")
    output.write(table, lambda: fig10.draw(drawn, about=probe.caption))
