"""`coprobe diagnose`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coprobe.cli.options import ProbingOptions, attack_option, debug_option, probing_options
from coprobe.cli.output import Output, interval, output_options, percent, print_table, print_text
from coprobe.cli.signs import SignOptions, print_signs, sign_options
from coprobe.core.defaults import SALIENT
from coprobe.core.files import records

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: How many salient channels of a node stand in the table.
_NAMED = 10


@click.command()
@click.argument("checkpoint")
@click.option(
    "--node", "nodes", multiple=True, help="Where to look for salient channels; repeatable.  [default: A…E, if any]"
)
@attack_option
@sign_options
@probing_options
@output_options
@debug_option
def command(
    checkpoint: str,
    nodes: tuple[str, ...],
    attack: str,
    names: tuple[str, ...] | None,
    budgets: tuple[float, ...],
    reference: str | None,
    per_image: Path | None,
    as_json: bool,
    out: Any,
    plot: Any,
    **probing: Any,
) -> None:
    """Is this checkpoint CO-affected? FGSM against PGD accuracy, salient channels, a verdict in a sentence.

    CO is a matter of the training budget, so without --eps the budget that the checkpoint was trained at is
    used where the file says it, else 8/255; the caption tells which. With --signs, --out is the table of signs and
    --plot their picture.

    \b
    Examples:
      coprobe diagnose runs/co/checkpoint.pt
      coprobe diagnose runs/co --signs all --out signs.csv --plot signs.png
      coprobe diagnose runs/co --signs accuracy-over-eps --sign-eps 1,4,16
    """
    from coprobe.figures import fig03
    from coprobe.figures.overview import draw_accuracies
    from coprobe.figures.signs import PICTURED
    from coprobe.figures.signs import draw as draw_signs

    output = Output(as_json, out, plot)
    asked = SignOptions(names, budgets, reference, per_image)
    options = ProbingOptions(**probing)
    probe = options.probe(checkpoint)
    with probe.keeping():
        signs = (
            None if names is None else asked.measure(probe, nodes, attack, options)
        )  # which may refuse, before the work
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
        if signs:
            print_signs(f"signs, {probe.caption}", signs.frame)
    drawn = diagnosis.statistics.table().assign(run=diagnosis.verdict, kind=diagnosis.verdict)

    def draw() -> Figure:
        if signs and not PICTURED.keys().isdisjoint(signs.frame["sign"]):
            kind = {"run": diagnosis.verdict, "kind": diagnosis.verdict}
            return draw_signs(signs.frame.assign(**kind), signs.images.assign(**kind), about=probe.caption)
        return draw_accuracies(frame, about=probe.caption) if drawn.empty else fig03.draw(drawn, about=probe.caption)

    replace(output, out=None if signs else output.out).write(
        frame,
        draw,
        verdict=diagnosis.verdict,
        sentence=diagnosis.sentence,
        salient=diagnosis.salient,
        **({"signs": records(signs.frame)} if signs else {}),
    )
    if signs:
        Output(False, output.out, None).write(signs.frame)
        Output(False, per_image, None).write(signs.images)


def _which(channels: list[int]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(channels) - _NAMED} more" if len(channels) > _NAMED else ""
    return " ".join(map(str, channels[:_NAMED])) + more or "–"
