"""`coprobe evaluate`."""

from __future__ import annotations

from typing import Any

import click

from coprobe.cli.accuracies import measuring_options, parse_noises, print_accuracies, print_stages, with_members
from coprobe.cli.options import ProbingOptions, debug_option, probing_options
from coprobe.cli.output import Output, output_options
from coprobe.core.text import storable


@click.command()
@click.argument("checkpoints", nargs=-1, required=True)
@measuring_options
@probing_options
@output_options
@debug_option
def command(
    checkpoints: tuple[str, ...],
    attacks: tuple[str, ...],
    aa_members: tuple[str, ...],
    noises: tuple[str, ...],
    noise_draws: int,
    as_json: bool,
    out: Any,
    plot: Any,
    **probing: Any,
) -> None:
    """Accuracy on clean images and under attacks, with 95 % Wilson intervals.

    aa is AutoAttack's standard version; aa:fast and what --aa-members chooses run only some of its members, and are
    called otherwise. Of all of them a second table says what each member added, and how long it took.
    Interrupted, the same command goes on with the attack that was being run.

    \b
    Example:
      coprobe evaluate ckpt.pt --data cifar10 --attacks fgsm,pgd:50,cw,aa --noise none --noise uniform:16
    """
    import pandas as pd

    from coprobe.figures.overview import draw_accuracies

    output = Output(as_json, out, plot)
    attacks = with_members(attacks, aa_members)
    drawn_from = parse_noises(noises)
    options = ProbingOptions(**probing)
    probes = {storable(path): options.probe(path) for path in checkpoints}  # all before the first attack
    parts, stages = [], []
    for path, probe in probes.items():
        evaluation = probe.evaluate(attacks, drawn_from, noise_draws)
        parts.append(evaluation.table().assign(model=path))
        stages += [{"model": path, **stage} for stage in parts[-1].attrs.pop("stages")]
    frame = pd.concat(parts, ignore_index=True)
    frame.attrs = {**_merged([part.attrs for part in parts]), "stages": stages}
    if output.for_people:
        for path, probe in probes.items():
            print_accuracies(f"{path}: accuracy (%), {probe.caption}", frame[frame["model"] == path])
            print_stages(path, [row for row in stages if row["model"] == path])
    first, probe = next(iter(probes.items()))
    drawn, about = frame[frame["model"] == first], f"{first}: {probe.caption}"
    output.write(frame, lambda: draw_accuracies(drawn, about=about), stages=stages)


def _merged(provenances: list[dict[str, Any]]) -> dict[str, Any]:
    """What all have in common as it is, and of the rest a list, with None where one says nothing."""
    values = {key: [one.get(key) for one in provenances] for key in {k: None for one in provenances for k in one}}
    return {
        key: several[0] if all(one == several[0] for one in several) else several for key, several in values.items()
    }
