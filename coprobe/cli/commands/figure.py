"""`coprobe figure`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from coprobe.cli.options import PaperOptions, ProbingOptions, debug_option, paper_options, probing_options
from coprobe.cli.output import message
from coprobe.errors import InputError


@click.command()
@click.argument("number", type=int)
@click.argument("runs_to_draw", metavar="[RUN]...", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), default=Path("figures"), show_default=True, help="Directory.")
@click.option("--json", "as_json", is_flag=True, help="Print the drawn numbers as JSON.")
@paper_options
@probing_options
@debug_option
def command(number: int, runs_to_draw: tuple[str, ...], out: Path, as_json: bool, **options: Any) -> None:
    """Draw figure 1 to 12 of the paper; writes figNN.png, figNN.pdf and figNN.csv, the numbers that are drawn.

    Without RUN: from the runs that 'coprobe paper' made at --scale. With run directories of yours: figure 1
    (accuracy and V_act over the epochs), 3 (T_act per channel) or 4 (the first run with channels masked); 3 and 4
    take checkpoint files as well. Statistics of your runs are kept in their directories and used again.

    \b
    Examples:
      coprobe figure 8 --scale small
      coprobe figure 3 runs/co runs/stable --out figures
    """
    import json

    from coprobe.core.files import check_writable_directory, records

    check_writable_directory(out)
    paper = {key: options.pop(key) for key in PaperOptions.__dataclass_fields__}
    files, frame = (
        _of_runs(number, runs_to_draw, out, ProbingOptions(**options))
        if runs_to_draw
        else _of_paper(number, out, PaperOptions(**paper))
    )
    if as_json:
        click.echo(json.dumps({"files": list(map(str, files)), "rows": records(frame)}, indent=2, allow_nan=False))
    else:
        for path in files:
            click.echo(str(path))


def _of_paper(number: int, out: Path, options: PaperOptions) -> tuple[list[Path], Any]:
    from coprobe.paper.figures import FIGURES
    from coprobe.paper.plan import chosen

    if number not in FIGURES:
        raise InputError(f"unknown figure '{number}'; choose from {min(FIGURES)} to {max(FIGURES)}")
    results = options.results()
    frame = FIGURES[number].content(results)
    (item,) = chosen([f"fig{number}"])
    return item.render(results, out), frame


def _of_runs(number: int, runs: Sequence[str], out: Path, options: ProbingOptions) -> tuple[list[Path], Any]:
    from coprobe.figures.style import save_all
    from coprobe.paper.own import draw, model_at

    models = [model_at(path, lambda path: options.probe(path, cache=True)) for path in runs]
    figure, frame = draw(number, models)
    about = {**models[0].probe.facts, "runs": ", ".join(runs)}
    message(f"figure {number} from {', '.join(runs)}")
    return save_all(figure, frame, out, f"fig{number:02d}", about), frame
