"""`coprobe diagnose`."""

from __future__ import annotations

from typing import Any

import click

from coprobe.cli.options import ProbingOptions, attack_option, debug_option, probing_options
from coprobe.cli.output import Output, interval, output_options, percent, print_table, print_text
from coprobe.core.defaults import SALIENT

#: How many salient channels of a node stand in the table.
_NAMED = 10


@click.command()
@click.argument("checkpoint")
@click.option(
    "--node", "nodes", multiple=True, help="Where to look for salient channels; repeatable.  [default: A…E, if any]"
)
@attack_option
@probing_options
@output_options
@debug_option
def command(
    checkpoint: str, nodes: tuple[str, ...], attack: str, as_json: bool, out: Any, plot: Any, **probing: Any
) -> None:
    """Is this checkpoint CO-affected? FGSM against PGD accuracy, salient channels, a verdict in a sentence.

    CO is a matter of the training budget, so without --eps the budget that the checkpoint was trained at is
    used where the file says it, else 8/255; the caption tells which.

    \b
    Example:
      coprobe diagnose runs/co/checkpoint.pt
    """
    from coprobe.figures import fig03
    from coprobe.figures.overview import draw_accuracies

    output = Output(as_json, out, plot)
    probe = ProbingOptions(**probing).probe(checkpoint)
    diagnosis = probe.diagnose(attack, nodes)
    frame = diagnosis.evaluation.table()
    if output.for_people:
        rows = [
            [row["attack"], percent(row["accuracy"]), interval(row["low"], row["high"])]
            for row in frame.to_dict("records")
        ]
        print_table(f"accuracy (%), {probe.caption}", ["attack", "accuracy", "95 % interval"], rows)
        salient = [
            [
                node,
                str(len(diagnosis.statistics.node(node))),
                str(len(channels)),
                _which(channels),
            ]
            for node, channels in diagnosis.salient.items()
        ]
        if salient:
            print_table(f"channels with T_act > {SALIENT}", ["node", "of", "salient", "which"], salient)
        print_text(diagnosis.sentence)
    drawn = diagnosis.statistics.table().assign(run=diagnosis.verdict, kind=diagnosis.verdict)
    output.write(
        frame,
        lambda: draw_accuracies(frame, about=probe.caption) if drawn.empty else fig03.draw(drawn, about=probe.caption),
        verdict=diagnosis.verdict,
        sentence=diagnosis.sentence,
        salient=diagnosis.salient,
    )


def _which(channels: list[int]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(channels) - _NAMED} more" if len(channels) > _NAMED else ""
    return " ".join(map(str, channels[:_NAMED])) + more or "–"
