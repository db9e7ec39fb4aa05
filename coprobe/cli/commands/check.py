"""`coprobe check`."""

from __future__ import annotations

from typing import Any

import click

from coprobe.cli.options import ProbingOptions, comma_separated, debug_option, probing_options
from coprobe.cli.output import Output, json_option, out_option, print_table, print_text
from coprobe.core.defaults import ATTACKS, PROBING_ATTACK


@click.command()
@click.argument("checkpoint")
@click.option(
    "--attacks",
    default=",".join([*ATTACKS, PROBING_ATTACK]),
    show_default=True,
    callback=comma_separated,
    help="Attacks that are meant.",
)
@click.option("--node", "nodes", multiple=True, help="Where channels are meant to be recorded.  [default: A…E]")
@probing_options
@json_option
@out_option
@debug_option
def command(
    checkpoint: str, attacks: tuple[str, ...], nodes: tuple[str, ...], as_json: bool, out: Any, **probing: Any
) -> None:
    """What would make results mean something else than they say: the self-check, all of it, on a few clean images.

    The quick part runs at the start of every command, and results record what it found. Nothing is attacked here.

    \b
    Example:
      coprobe check ckpt.pt --data cifar10
    """
    import pandas as pd

    from coprobe.checks import CHECKS
    from coprobe.core.provenance import provenance

    output = Output(as_json, out, None)
    probe = ProbingOptions(**probing).probe(checkpoint, warns=False)
    found = probe.check(attacks, nodes).by_check
    frame = pd.DataFrame(
        {"check": name, "what": CHECKS.entry(name).summary, "finding": finding.sentence if finding else ""}
        for name, finding in found.items()
    )
    frame.attrs = provenance(**probe.facts)
    if output.for_people:
        rows = [[row["check"], "!" if row["finding"] else "ok", row["what"]] for row in frame.to_dict("records")]
        print_table(f"{checkpoint}, {probe.caption}", ["check", "", "what should hold"], rows, left=3)
        for row in frame[frame["finding"] != ""].to_dict("records"):
            print_text(f"{row['check']}: {row['finding']}")
    output.write(frame)
