"""`coprobe diagnose`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from coprobe.cli.options import ProbingOptions, attack_option, debug_option, probing_options
from coprobe.cli.output import Output, output_options, percent, print_table, print_text
from coprobe.core.defaults import EPS, SALIENT


@click.command(short_help="Is a checkpoint CO-affected? A verdict in a sentence.")
@click.argument("checkpoint")
@attack_option
@probing_options
@output_options
@debug_option
@click.pass_context
def command(
    ctx: click.Context, /, checkpoint: str, attack: str, as_json: bool, out: Any, plot: Any, **probing: Any
) -> None:
    """Is this checkpoint CO-affected? FGSM against PGD accuracy, salient channels, a verdict in a sentence.

    CO is a matter of the training budget, so without --eps the budget that the checkpoint was trained at is
    used where the file says it, else 16/255.

    \b
    Example:
      coprobe diagnose runs/co/checkpoint.pt
    """
    output = Output(as_json, out, plot)
    options = ProbingOptions(**probing)
    if ctx.get_parameter_source("eps") is click.core.ParameterSource.DEFAULT:
        options = replace(options, eps=float(options.read(checkpoint).recipe.get("eps_train") or EPS))
    probe = options.probe(checkpoint)
    diagnosis = probe.diagnose(attack)
    frame = diagnosis.evaluation.table()

    def show() -> None:
        rows = [
            [row["attack"], percent(row["accuracy"]), f"{percent(row['low'])} – {percent(row['high'])}"]
            for row in frame.to_dict("records")
        ]
        print_table(f"accuracy (%), {probe.caption}", ["attack", "accuracy", "95 % interval"], rows)
        salient = [
            [
                node,
                str(len(diagnosis.statistics.node(node))),
                str(len(channels)),
                " ".join(map(str, channels[:10])) or "–",
            ]
            for node, channels in diagnosis.salient.items()
        ]
        print_table(f"channels with T_act > {SALIENT}", ["node", "of", "salient", "which"], salient)
        print_text(diagnosis.sentence)

    def draw() -> Any:
        from coprobe.figures import fig03

        table = diagnosis.statistics.table().assign(run=diagnosis.verdict, kind=diagnosis.verdict)
        return fig03.draw(table, about=probe.caption)

    output.give(frame, show, draw, verdict=diagnosis.verdict, sentence=diagnosis.sentence, salient=diagnosis.salient)
