"""`coprobe transfer`."""

from __future__ import annotations

from typing import Any

import click

from coprobe.cli.accuracies import measuring_options, parse_noises, print_accuracies, print_stages, with_members
from coprobe.cli.options import ProbingOptions, debug_option, probing_options
from coprobe.cli.output import Output, output_options
from coprobe.core.text import storable


@click.command()
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
    aa_members: tuple[str, ...],
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
    from coprobe.figures.overview import draw_accuracies

    output = Output(as_json, out, plot)
    attacks = with_members(attacks, aa_members)
    drawn_from = parse_noises(noises)
    options = ProbingOptions(**probing)
    probe = options.probe(source)
    images = probe.dataset
    read = {path: options.read(path, image_shape=images.image_shape) for path in targets}
    others = [options.fitted(path, other, images, probe.device, probe.processes) for path, other in read.items()]
    evaluation = probe.transfer(others, attacks, drawn_from, noise_draws)
    frame = evaluation.table()
    own, first, *rest = map(storable, (source, *targets))
    shown = dict(zip(frame["target"].unique(), (own, first, *rest), strict=True))
    frame["target"] = frame["target"].map(shown)
    frame.attrs["targets"] = {shown[path]: digest for path, digest in frame.attrs["targets"].items()}
    stages = frame.attrs["stages"] = [{"model": own, **stage} for stage in frame.attrs["stages"]]
    if output.for_people:
        for path in shown.values():
            how = "itself, white box" if path == own else f"on images crafted on {own}"
            print_accuracies(f"{path}: accuracy (%) {how}, {probe.caption}", frame[frame["target"] == path])
        print_stages(own, stages)
    drawn, about = frame[frame["target"] == first], f"{own} → {first}: {probe.caption}"
    output.write(frame, lambda: draw_accuracies(drawn, about=about), stages=stages)
