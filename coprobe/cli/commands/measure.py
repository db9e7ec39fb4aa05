"""`coprobe measure`."""

from __future__ import annotations

from typing import Any

import click

from coprobe.cli.options import ProbingOptions, debug_option, probing_options
from coprobe.cli.output import Output, json_option, out_option, print_table


@click.command()
@click.argument("checkpoint")
@click.argument("names", metavar="METRIC...", nargs=-1, required=True)
@probing_options
@json_option
@out_option
@debug_option
def command(checkpoint: str, names: tuple[str, ...], as_json: bool, out: Any, **probing: Any) -> None:
    """Measure what METRIC names, with its default settings; metrics that are named together share their attacks.

    The metrics are those of README.md ("Metrics"): accuracy, activations, attribution, gradient-alignment, increments,
    overlap. Where there are several, each row says in its first column which it belongs to.

    \b
    Example:
      coprobe measure runs/co gradient-alignment --eps 8 --limit 256
    """
    import pandas as pd

    from coprobe.metrics import METRICS
    from coprobe.metrics.metric import table_of

    output = Output(as_json, out, None)
    metrics = [METRICS[name]() for name in dict.fromkeys(names)]
    probe = ProbingOptions(**probing).probe(checkpoint)
    results = zip(dict.fromkeys(names), probe.measure(*metrics), strict=True)
    tables = {name: table_of(result) for name, result in results}
    frame = pd.concat([table.assign(metric=name) for name, table in tables.items()], ignore_index=True)
    frame = frame[["metric", *frame.columns.drop("metric")]]
    frame.attrs = next(iter(tables.values())).attrs

    if output.for_people:
        for name, table in tables.items():
            cells = [
                [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in table.to_numpy()
            ]
            print_table(f"{name}, {probe.caption}", list(table.columns), cells)
    output.write(frame)
