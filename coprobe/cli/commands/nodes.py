"""`coprobe nodes`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from coprobe.cli.options import ReadingOptions, debug_option, reading_options
from coprobe.cli.output import Output, output_options, print_table

if TYPE_CHECKING:
    from coprobe.nodes import Place


@click.command()
@click.argument("checkpoint")
@click.option("--image-size", type=click.IntRange(1), help="Side of the images.  [default: as trained, else 32]")
@reading_options
@output_options
@debug_option
def command(checkpoint: str, image_size: int | None, as_json: bool, out: Any, plot: Any, **reading: Any) -> None:
    """Where a checkpoint can be probed: every place after a ReLU or its like; A…E mark the five of the paper.

    `layer1.0#relu2` is the second ReLU that layer1.0 calls. Other module paths work as well: `layer1.0` is a module's
    output, `layer1.0:in` its input. `:12` at the end of any name is its channel 12.

    \b
    Example:
      coprobe nodes ckpt.pt
    """
    import pandas as pd

    from coprobe.core.provenance import provenance
    from coprobe.errors import InputError
    from coprobe.figures.overview import draw_places
    from coprobe.nodes import NO_NODES, is_guessed, places

    output = Output(as_json, out, plot)
    loaded = ReadingOptions(**reading).read(checkpoint)
    side = image_size or (loaded.image_shape[1] if loaded.image_shape else 32)
    smallest = getattr(loaded.model.network, "min_image_size", 1)
    if side < smallest:
        raise InputError(f"--image-size {side}: {loaded.arch} needs at least {smallest} pixels")
    found = places(loaded.model, (loaded.in_channels, side, side))
    guessed = is_guessed(loaded.model)
    frame = pd.DataFrame({**asdict(place), "shape": list(place.shape)} for place in found)
    frame.attrs.update(provenance(**loaded.facts(), guessed=guessed))
    if output.for_people:
        rows = [[place.path, place.letter, place.function, _shape(place)] for place in found]
        note = "A…E are a guess: the first place, and the last one of each resolution" if guessed else ""
        note = note if rows else f"{NO_NODES}; name module paths"
        if not all(place.axis is not None for place in found if place.rows):
            note += f"{'; ' * bool(note)}say which axis holds the channels with --channel-axis NODE=AXIS"
        print_table(f"{loaded.arch}, {side}×{side} pixels", ["place", "node", "after", "shape"], rows, note, left=3)
    output.write(
        frame,
        lambda: draw_places([place for place in found if place.axis is not None and place.rows], title=loaded.arch),
    )


def _shape(place: Place) -> str:
    from coprobe.nodes import describe_shape

    if not place.rows:
        return "no row for each image"
    return "unknown channel axis" if place.axis is None else describe_shape(place.shape, place.rows)
