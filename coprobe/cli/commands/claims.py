"""`coprobe claims`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coprobe.cli.options import PaperOptions, debug_option, paper_options
from coprobe.cli.output import json_option, message, print_table, print_text

if TYPE_CHECKING:
    import pandas as pd


@click.command()
@paper_options
@click.option("--only", help="These claims, by their ids.")
@json_option
@click.option("--out", type=click.Path(path_type=Path), help="Write the table (.csv, .md, .json).")
@debug_option
def command(only: str | None, as_json: bool, out: Path | None, **paper: Any) -> None:
    """List the paper's claims with our verdicts.

    A claim is confirmed, refuted, undecided (too close to tell, or what it is about did not happen in these runs) or
    not yet measured. K1 to K5 are not the paper's: they ask whether the effect of noise survives stronger attacks.
    Nothing is trained or measured here; 'coprobe paper' does that.

    \b
    Examples:
      coprobe claims
      coprobe claims --scale small --only C05,C08
      coprobe claims --out claims.md
    """
    from coprobe.core.files import check_writable, records
    from coprobe.errors import InputError
    from coprobe.paper.claims import CLAIMS, CONTROLS, chosen, judged

    if out:
        check_writable(out, (".csv", ".md", ".json"))
    claims = chosen([id.strip() for id in only.split(",")]) if only else [*CLAIMS, *CONTROLS]
    results = PaperOptions(**paper).results()
    if not results.directory.is_dir():
        raise InputError(f"{results.directory}: no such directory; {results.remedy}, or name --runs")
    frame = judged(results, claims)
    if as_json:
        click.echo(json.dumps(records(frame), indent=2, ensure_ascii=False))
    else:
        _show(frame)
    if out:
        _write(frame, out)
        message(f"wrote {out}")


def _show(frame: pd.DataFrame) -> None:
    """A table per verdict, with a sentence below for every claim that is not confirmed."""
    from coprobe.paper.claims import VERDICTS

    for verdict in VERDICTS:
        rows = frame[frame["verdict"] == verdict]
        if rows.empty:
            continue
        cells = rows[["id", "statement", "value", "paper"]].to_numpy().tolist()
        print_table(f"{verdict} ({len(rows)})", ["id", "the claim", "our value", "the paper"], cells, left=4)
        for id, why in rows[["id", "why"]].itertuples(index=False):
            if why:
                print_text(f"{id}: {why}")
        click.echo()


def _write(frame: pd.DataFrame, out: Path) -> None:
    from coprobe.core.files import atomic, write_table
    from coprobe.paper.claims import markdown

    if out.suffix != ".md":
        write_table(frame, out)
        return
    with atomic(out) as temporary:
        temporary.write_text(markdown(frame), encoding="utf-8")
