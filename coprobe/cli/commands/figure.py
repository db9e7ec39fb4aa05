"""`coprobe figure`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from coprobe.cli.options import ProbingOptions, debug_option, probing_options
from coprobe.cli.output import message


@click.command(short_help="Draw figure 1, 3 or 4 of the paper from runs.")
@click.argument("number", type=int)
@click.argument("runs", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("figures"), show_default=True, help="Directory.")
@click.option("--json", "as_json", is_flag=True, help="Print the drawn numbers as JSON.")
@probing_options
@debug_option
def command(number: int, runs: tuple[str, ...], out: Path, as_json: bool, **probing: Any) -> None:
    """Draw figure 1, 3 or 4 of the paper from run directories (3 and 4 also from checkpoint files).

    Writes figNN.png, figNN.pdf and figNN.csv, the numbers that are drawn. Figure 1 shows accuracy and V_act
    over the epochs, figure 3 T_act per channel, figure 4 the first run's accuracy with channels masked.
    Statistics are kept in the run directory and used again for the same weights, images and settings.

    \b
    Example:
      coprobe figure 3 runs/co runs/stable --out figures
    """
    import json

    from coprobe.figures.style import save_all
    from coprobe.files import check_writable_directory, records
    from coprobe.paper.sources import draw, source

    check_writable_directory(out)
    options = ProbingOptions(**probing)
    sources = [source(path, lambda path: options.probe(path, cache=True)) for path in runs]
    drawn = draw(number, sources)
    about = {**sources[0].probe.facts, "runs": ", ".join(runs)}
    paths = save_all(drawn.figure, drawn.frame, out, drawn.name, about)
    if as_json:
        click.echo(
            json.dumps({"files": list(map(str, paths)), "rows": records(drawn.frame)}, indent=2, allow_nan=False)
        )
    else:
        for path in paths:
            click.echo(str(path))
    message(f"figure {number} from {', '.join(runs)}")
