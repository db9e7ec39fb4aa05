"""`coprobe signs`."""

from __future__ import annotations

import inspect
import json

import click

from coprobe.cli.options import debug_option
from coprobe.cli.output import json_option, print_table, print_text
from coprobe.cli.signs import shown


@click.command()
@click.argument("name", required=False)
@json_option
@debug_option
def command(name: str | None, as_json: bool) -> None:
    """List the signs of catastrophic overfitting, or describe the one called NAME with its formula.

    'coprobe diagnose --signs' measures them. The cost is that for each image: gradients (passes forward and backward)
    and forward passes; signs that are measured together share theirs.

    \b
    Examples:
      coprobe signs
      coprobe signs gradient-alignment
    """
    from coprobe.verdict.signs import NOTATION, SIGNS, listed

    entries = listed() if name is None else [SIGNS.entry(name)]
    described = [
        {
            "number": entry.facts["number"],
            "name": entry.name,
            "summary": entry.summary,
            "formula": entry.value.formula,
            "source": entry.source,
            "cost": entry.facts["cost"],
            "quantities": [vars(quantity) for quantity in entry.value.quantities],
        }
        for entry in entries
    ]
    if as_json:
        click.echo(json.dumps(described, indent=2))
    elif name is None:
        rows = [[str(one["number"]), one["name"], one["summary"], one["cost"]] for one in described]
        print_table("Signs of catastrophic overfitting", ["", "name", "what it is", "cost per image"], rows, left=4)
    else:
        (one,) = described
        docstring = inspect.cleandoc(entries[0].value.__doc__ or "").splitlines()
        summary = f"{name}: {one['summary']} ({one['source']}); cost per image: {one['cost']}"
        for paragraph in (summary, one["formula"], NOTATION, *docstring):
            print_text(paragraph)
        rows = [[q["name"], q["unit"], shown(q["healthy"], q["collapsed"]), q["interval"]] for q in one["quantities"]]
        print_table("", ["number", "what it is", "healthy → CO-affected", "95 % interval"], rows, left=4)
