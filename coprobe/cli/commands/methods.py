"""`coprobe methods`."""

from __future__ import annotations

import dataclasses
import inspect
import json
from typing import Any

import click

from coprobe.cli.options import debug_option
from coprobe.cli.output import json_option, print_table, print_text


@click.command()
@click.argument("name", required=False)
@json_option
@debug_option
def command(name: str | None, as_json: bool) -> None:
    """List the training methods, or describe the one called NAME with its options.

    The cost is the work of an epoch relative to FGSM's, counted in passes through the network.

    \b
    Examples:
      coprobe methods
      coprobe methods fgsm-mep
    """
    from coprobe.training import METHODS

    entries = METHODS.entries() if name is None else [METHODS.entry(name)]
    described = [
        {
            "name": entry.name,
            "summary": entry.summary,
            "source": entry.source,
            "cost": entry.facts["cost"],
            "options": _options(entry.value),
        }
        for entry in entries
    ]
    if as_json:
        click.echo(json.dumps(described, indent=2))
    elif name is None:
        rows = [[str(one["name"]), f"{one['cost']:g}", str(one["summary"]), str(one["source"])] for one in described]
        print_table("Training methods", ["name", "cost", "what it is", "source"], rows, left=4)
    else:
        (one,) = described
        print_text(f"{name}: {one['summary']} ({one['source']}); {one['cost']:g} times the work of FGSM\n")
        click.echo(inspect.cleandoc(entries[0].value.__doc__ or "") + "\n")
        for key, value in one["options"].items():
            click.echo(f"--option {key}={'…' if value is None else value}")


def _options(method: type[Any]) -> dict[str, Any]:
    """The method's own options with their defaults."""
    from coprobe.training import Method

    shared = {field.name for field in dataclasses.fields(Method)}
    return {
        field.name.replace("_", "-"): field.default
        for field in dataclasses.fields(method)
        if field.init and field.name not in shared
    }
