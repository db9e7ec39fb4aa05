"""`coprobe transfer`."""

from __future__ import annotations

from typing import Any

import click

from coprobe.cli.accuracies import measuring_options, parse_noises, print_accuracies
from coprobe.cli.options import ProbingOptions, debug_option, probing_options, read_checkpoint
from coprobe.cli.output import Output, output_options


@click.command(short_help="Accuracy on images crafted on another model (Fig. 12).")
@click.argument("source")
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@measuring_options
@probing_options
@output_options
@debug_option
def command(
    source: str,
    targets: tuple[str, ...],
    attacks: tuple[str, ...],
    noises: tuple[str, ...],
    noise_draws: int,
    as_json: bool,
    out: Any,
    plot: Any,
    **probing: Any,
) -> None:
    """Craft images on SOURCE, and measure SOURCE itself (white box) and every TARGET on them.

    --data, --arch and the like hold for all of them. The picture shows the first TARGET.

    \b
    Example:
      coprobe transfer runs/stable runs/co --attacks fgsm,pgd:50 --noise none --noise uniform:16
    """
    from coprobe.paper.sources import readable_attacks

    output = Output(as_json, out, plot)
    drawn_from = parse_noises(noises)
    options = ProbingOptions(**probing)
    probe = options.probe(source)
    others = [read_checkpoint(path, options.arch, options.arch_args, options.mean, options.std) for path in targets]
    evaluation = probe.transfer(others, attacks, drawn_from, noise_draws)
    frame = readable_attacks(evaluation, probe.epsilon)
    shown = dict(zip(frame["target"].unique(), (source, *targets), strict=True))
    frame["target"] = frame["target"].map(shown)
    frame.attrs["targets"] = {shown[path]: digest for path, digest in frame.attrs["targets"].items()}

    def show() -> None:
        for path in shown.values():
            how = "itself, white box" if path == source else f"on images crafted on {source}"
            print_accuracies(f"{path}: accuracy (%) {how}, {probe.caption}", frame[frame["target"] == path])

    def draw() -> Any:
        from coprobe.figures.overview import draw_accuracies

        return draw_accuracies(frame[frame["target"] == targets[0]], about=f"{source} → {targets[0]}: {probe.caption}")

    output.give(frame, show, draw)
