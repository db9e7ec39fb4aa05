"""`coprobe nodes`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from coprobe.cli.options import debug_option, read_checkpoint, reading_options
from coprobe.cli.output import Output, output_options, print_table


@click.command(short_help="Where a checkpoint can be probed.")
@click.argument("checkpoint")
@click.option("--image-size", type=click.IntRange(1), help="Side of the images.  [default: as trained, else 32]")
@reading_options
@output_options
@debug_option
def command(checkpoint: str, image_size: int | None, as_json: bool, out: Any, plot: Any, **reading: Any) -> None:
    """Where a checkpoint can be probed: every place after a ReLU; A…E mark the five of the paper.

    Other module paths work as well: `layer1.0` is a module's output, `layer1.0:in` its input.

    \b
    Example:
      coprobe nodes ckpt.pt
    """
    import pandas as pd

    from coprobe.errors import InputError
    from coprobe.nodes import places
    from coprobe.provenance import provenance

    output = Output(as_json, out, plot)
    loaded = read_checkpoint(checkpoint, **reading)
    side = image_size or (loaded.image_shape[1] if loaded.image_shape else 32)
    smallest = getattr(loaded.model.network, "min_image_size", 1)
    if side < smallest:
        raise InputError(f"--image-size {side}: {loaded.arch} needs at least {smallest} pixels")
    found = places(loaded.model, (loaded.in_channels, side, side))
    frame = pd.DataFrame({**asdict(place), "shape": list(place.shape)} for place in found)
    frame.attrs.update(provenance(**loaded.facts()))

    def show() -> None:
        rows = [[place.path, place.letter, "×".join(map(str, place.shape))] for place in found]
        print_table(f"{loaded.arch}, {side}×{side} pixels", ["module path", "node", "channels × H × W"], rows, left=2)

    def draw() -> Any:
        from coprobe.figures.overview import draw_places

        return draw_places(found, title=loaded.arch)

    output.give(frame, show, draw)
