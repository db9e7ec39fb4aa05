"""`coprobe evaluate`."""

from __future__ import annotations

from typing import Any

import click

from coprobe.cli.options import ProbingOptions, comma_separated, debug_option, probing_options
from coprobe.cli.output import Output, output_options, percent, print_table


@click.command(short_help="Accuracy under attacks and noise.")
@click.argument("checkpoints", nargs=-1, required=True)
@click.option(
    "--attacks",
    default="fgsm,pgd:10",
    show_default=True,
    callback=comma_separated,
    help="fgsm, pgd:50, cw, apgd-ce, apgd-t, aa, …, with options: pgd:50:restarts=10:step-size=4.",
)
@click.option(
    "--noise", "noises", multiple=True, help="none, uniform:16 or gauss:8, added after the attack; repeatable."
)
@probing_options
@output_options
@debug_option
def command(
    checkpoints: tuple[str, ...],
    attacks: tuple[str, ...],
    noises: tuple[str, ...],
    as_json: bool,
    out: Any,
    plot: Any,
    **probing: Any,
) -> None:
    """Accuracy on clean images and under attacks, with 95 % Wilson intervals.

    \b
    Example:
      coprobe evaluate ckpt.pt --data cifar10 --attacks fgsm,pgd:50,cw,aa --noise none --noise uniform:16
    """
    import pandas as pd

    from coprobe.evaluation import NO_NOISE, Noise
    from coprobe.paper.sources import readable_attacks

    output = Output(as_json, out, plot)
    drawn_from = [Noise.parse(spec) for spec in noises] or [NO_NOISE]
    options = ProbingOptions(**probing)
    probes = {path: options.probe(path) for path in checkpoints}  # all before the first attack
    parts = []
    for path, probe in probes.items():
        evaluation = probe.evaluate(attacks, drawn_from)
        parts.append(readable_attacks(evaluation, probe.epsilon).assign(model=path))
    frame = pd.concat(parts, ignore_index=True)
    frame.attrs = {
        key: value if all(part.attrs[key] == value for part in parts) else [part.attrs[key] for part in parts]
        for key, value in parts[0].attrs.items()
    }

    def show() -> None:
        for path in checkpoints:
            rows = [
                [
                    row["attack"],
                    row["noise"],
                    percent(row["accuracy"]),
                    f"{percent(row['low'])} – {percent(row['high'])}",
                ]
                for row in frame[frame["model"] == path].to_dict("records")
            ]
            title = f"{path}: accuracy (%), {probes[path].caption}"
            print_table(title, ["attack", "noise", "accuracy", "95 % interval"], rows, left=2)

    def draw() -> Any:
        from coprobe.figures.overview import draw_accuracies

        about = f"{checkpoints[0]}, n = {frame['n'].iloc[0]}, ε = {options.eps:g}/255, seed {options.seed}"
        return draw_accuracies(frame[frame["model"] == checkpoints[0]], about=about)

    output.give(frame, show, draw)
