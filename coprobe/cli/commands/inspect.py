"""`coprobe inspect`."""

from __future__ import annotations

from typing import Any

import click

from coprobe.cli.options import debug_option, read_checkpoint, reading_options
from coprobe.cli.output import Output, output_options, print_table


@click.command(short_help="What is in a checkpoint.")
@click.argument("checkpoint")
@reading_options
@output_options
@debug_option
def command(checkpoint: str, as_json: bool, out: Any, plot: Any, **reading: Any) -> None:
    """What is in a checkpoint: container, architecture, weights, normalisation, how it was trained.

    \b
    Example:
      coprobe inspect ckpt.pt
    """
    import pandas as pd

    from coprobe.checkpoint import count_parameters
    from coprobe.nodes import node_table
    from coprobe.provenance import provenance

    output = Output(as_json, out, plot)
    loaded = read_checkpoint(checkpoint, **reading)
    weights = loaded.model.network.state_dict()
    floating = {name: tensor for name, tensor in weights.items() if tensor.is_floating_point()}
    facts = {
        "file": str(loaded.path),
        "container": loaded.container,
        "layout": loaded.layout,
        "architecture": loaded.arch,
        **loaded.arch_args,
        "parameters": count_parameters(loaded.model),
        "normalisation": f"mean {loaded.model.mean}, std {loaded.model.std}" if loaded.model.mean else "none",
        "nodes": ", ".join(f"{letter} {path}" for letter, path in node_table(loaded.model).items()),
        "digest": loaded.digest,
        **{f"trained: {key}": value for key, value in _told(loaded.recipe).items()},
        **{f"measured: {key}": value for key, value in loaded.metrics.items()},
    }
    frame = pd.DataFrame(
        {"weight": name, "shape": list(t.shape), "rms": t.square().mean().sqrt().item()} for name, t in floating.items()
    )
    frame.attrs.update(provenance(**loaded.facts()))

    def show() -> None:
        rows = [[key, f"{value:.4g}" if isinstance(value, float) else str(value)] for key, value in facts.items()]
        print_table(str(checkpoint), ["", ""], rows, left=2)

    def draw() -> Any:
        from coprobe.figures.overview import draw_weights

        scales = dict(zip(frame["weight"], frame["rms"], strict=True))
        return draw_weights(scales, title=loaded.path.name if loaded.path else loaded.arch)

    output.give(frame, show, draw, facts=facts)


def _told(recipe: dict[str, Any]) -> dict[str, Any]:
    """The knobs that differ from their defaults, and those that people always ask for."""
    from coprobe.training import Recipe

    usual = Recipe().to_dict()
    always = ("method", "data", "eps_train", "epochs", "seed")
    return {key: value for key, value in recipe.items() if key in always or value != usual.get(key)}
