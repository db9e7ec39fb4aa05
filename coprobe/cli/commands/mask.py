"""`coprobe mask`."""

from __future__ import annotations

from itertools import chain
from typing import Any

import click

from coprobe.cli import memory
from coprobe.cli.options import Number, ProbingOptions, attack_option, comma_separated, debug_option, probing_options
from coprobe.cli.output import Output, interval, output_options, percent, print_table
from coprobe.core.defaults import ATTACKS, COMPARED, SALIENT


@click.command()
@click.argument("checkpoint", required=False)
@click.option(
    "--node",
    default="A",
    show_default=True,
    help="A…E, a module path, or a place of `coprobe nodes`; A:12 masks channel 12 of A.",
)
@click.option(
    "--alpha2",
    type=Number(0, 1),
    multiple=True,
    help=f"Mask channels with T_act above this; repeatable.  [default: {SALIENT}]",
)
@click.option(
    "--percent",
    "share",
    type=Number(0, 100, min_open=True),
    help="Mask this share of the channels instead, by T_act.",
)
@click.option(
    "--compare",
    default=",".join(COMPARED),
    show_default=True,
    callback=comma_separated,
    help="Selectors of as many other channels; none for none.",
)
@click.option(
    "--attacks", default=",".join(ATTACKS), show_default=True, callback=comma_separated, help="Attacks to measure."
)
@attack_option
@probing_options
@output_options
@debug_option
def command(
    checkpoint: str | None,
    node: str,
    alpha2: tuple[float, ...],
    share: float | None,
    compare: tuple[str, ...],
    attacks: tuple[str, ...],
    attack: str,
    as_json: bool,
    out: Any,
    plot: Any,
    **probing: Any,
) -> None:
    """Accuracy with the salient channels masked (Eq. 7), beside other masks of the same size.

    Without CHECKPOINT: the one probed last from this directory, or the newest run below it. Adversarial
    images are crafted once, on the unmasked model. Random masks are averaged over several draws.

    \b
    Example:
      coprobe mask --alpha2 0.5
      coprobe mask ckpt.pt --data cifar10 --alpha2 0.99 --alpha2 0.5 --alpha2 0.1 --plot fig4.png
    """
    from coprobe.figures import fig04
    from coprobe.nodes import NO_MASK

    output = Output(as_json, out, plot)
    probe = ProbingOptions(**probing).probe(checkpoint or memory.recall())
    masking = probe.mask(
        node,
        alpha2 or None,
        percent=share,
        compare=() if compare == ("none",) else compare,
        attacks=attacks,
        attack=attack,
    )
    frame = masking.evaluation.table()
    chosen = {mask.reason: [*chain(*mask.channels.values())] for mask in masking.masks if mask.draw == 0}
    if output.for_people:
        nothing = not any(mask.count for mask in masking.masks)
        rows = []
        for _, one in frame.groupby(["mask", "masked"], sort=False):
            reason, count = one["mask"].iloc[0], int(one["masked"].iloc[0])
            if nothing and reason != NO_MASK.reason:
                continue  # the same numbers again
            which = "" if reason in ("none", "random") else " ".join(map(str, chosen[reason][:5]))
            which += f" and {count - 5} more" if which and count > 5 else ""
            rows.append([reason, str(count), *map(percent, one["accuracy"]), which])
            rows.append(["", "", *map(interval, one["low"], one["high"]), ""])
        title = f"accuracy (%) with channels of node {node} masked, below it its 95 % interval, {probe.caption}"
        note = _advice(node, masking.statistics.t_act(node).max(), min(alpha2, default=SALIENT)) if nothing else ""
        print_table(title, ["mask", "channels", *frame["attack"].unique(), "which"], rows, note)
    output.write(frame, lambda: fig04.draw(frame, about=probe.caption), masks=chosen)


def _advice(node: str, largest: float, alpha2: float) -> str:
    return (
        f"no channel is masked: none at {node} has a T_act above {alpha2:g}, the largest is {largest:.2g}; lower "
        "--alpha2, mask the first by rank (--percent 5), or attack at the training budget with --eps"
    )
