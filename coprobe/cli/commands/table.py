"""`coprobe table`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from coprobe.cli.options import PaperOptions, debug_option, paper_options
from coprobe.cli.output import message


@click.command()
@click.argument("number", type=int)
@paper_options
@click.option("--out", type=click.Path(path_type=Path), help="Directory; also writes tabN.md, .tex and .csv there.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
@debug_option
def command(number: int, out: Path | None, as_json: bool, **paper: Any) -> None:
    """Print table 1 to 7 of the paper as Markdown, from the runs that 'coprobe paper' made.

    A cell holds our value, the paper's and the difference; what is not measured yet is a dash.

    \b
    Example:
      coprobe table 5 --scale demo
    """
    import json

    from coprobe.core.files import check_writable_directory, records
    from coprobe.figures.tables import markdown, save_table
    from coprobe.paper.tables import about, content, table_of

    title = f"Table {number}. {table_of(number).title}"
    if out:
        check_writable_directory(out)
    results = PaperOptions(**paper).results()
    frame, notes = content(number, results), about(number, results)
    if as_json:
        click.echo(json.dumps({"rows": records(frame)}, indent=2, allow_nan=False))
    else:
        click.echo(markdown(frame, title, notes))
    if out:
        for path in save_table(frame, out, f"tab{number}", title, notes):
            message(f"wrote {path}")
