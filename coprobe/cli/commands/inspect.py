"""`coprobe inspect`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from coprobe.cli.options import (
    ReadingOptions,
    debug_option,
    image_size_option,
    read_images,
    reading_options,
    skip_bad_option,
)
from coprobe.cli.output import Output, message, output_options, percent, print_table, progress
from coprobe.core.text import storable

if TYPE_CHECKING:
    from torch import Tensor

    from coprobe.checkpoint import Checkpoint
    from coprobe.checkpoint.normalisation_check import NormalisationCheck, Score
    from coprobe.data import Dataset

#: Elements of a weight that are looked at together, so that no copy of a large one is made.
_CHUNK = 1 << 20


@click.command()
@click.argument("checkpoint")
@click.option("--data", help="Images to try out what the file leaves open: NAME, folder:DIR or parquet:DIR.")
@click.option(
    "--weights",
    "lists_weights",
    is_flag=True,
    help="List all weights instead, in the file and in the network, whether they fit or not.",
)
@skip_bad_option
@image_size_option
@reading_options
@output_options
@debug_option
def command(
    checkpoint: str,
    data: str | None,
    lists_weights: bool,
    skip_bad: bool,
    image_size: str | None,
    as_json: bool,
    out: Any,
    plot: Any,
    **reading: Any,
) -> None:
    """What is in a checkpoint: container, architecture, weights, normalisation, how it was trained.

    With --data it also says what fits: which normalisation (none, the data set's, ImageNet's, [-1, 1], or what is
    given), and what names and shapes of weights can't tell (stem, shortcuts, activation functions).

    \b
    Examples:
      coprobe inspect ckpt.pt
      coprobe inspect ckpt.pt --data cifar10
      coprobe inspect ckpt.pt --model net.py:Net --weights --out weights.csv
    """
    import pandas as pd

    from coprobe.checkpoint.normalisation_check import IMAGES
    from coprobe.core.provenance import provenance
    from coprobe.figures.overview import draw_weights

    output = Output(as_json, out, plot)
    options = ReadingOptions(**reading)
    if lists_weights:
        _list_weights(output, options, checkpoint)
        return
    dataset = None
    if data:
        images = partial(read_images, data, limit=IMAGES, skip_bad=skip_bad, image_size=image_size)
        loaded, dataset = options.read_for(checkpoint, images)
    else:
        loaded = options.read(checkpoint, as_stored=True)
    facts = _facts(loaded)
    weights = {n: t for n, t in loaded.model.network.state_dict().items() if t.is_floating_point()}
    frame = pd.DataFrame({"weight": storable(n), "shape": list(t.shape), "rms": _rms(t)} for n, t in weights.items())
    frame.attrs.update(provenance(**loaded.facts()))
    examined = _examine(checkpoint, loaded, dataset) if dataset else None
    if output.for_people:
        print_table(str(checkpoint), ["", ""], [[key, _shown(value)] for key, value in facts.items()], left=2)
        if examined is not None:
            examined.show()
    scales = dict(zip(frame["weight"], frame["rms"], strict=True))
    title = loaded.path.name if loaded.path else loaded.arch
    tried = {"normalisations": examined.plain()} if examined else {}
    output.write(frame, lambda: draw_weights(scales, title=title), facts=facts, **tried)
    for sentence in examined.sentences if examined is not None else ():
        message(f"{checkpoint}: {sentence}")


def _list_weights(output: Output, options: ReadingOptions, path: str) -> None:
    """Show all weights of a file beside those of the network; that they don't fit is said, and no error."""
    import pandas as pd

    from coprobe.core.provenance import provenance

    rows, fault = options.compare(path)
    header = ["in the file", "shape", "in the network", "shape there", "side"]
    frame = pd.DataFrame([[storable(text) for text in astuple(row)] for row in rows], columns=header)
    frame.attrs.update(provenance(checkpoint=str(path)))
    if output.for_people:
        print_table(str(path), header, frame.to_numpy().tolist(), left=5)
    output.write(frame, fits=not fault, fault=fault or None)
    if fault:
        message(f"{path}: {fault}")


def _facts(loaded: Checkpoint) -> dict[str, Any]:
    """What is known of a checkpoint, as plain values that strict JSON can hold."""
    from coprobe.checkpoint import count_parameters
    from coprobe.nodes import is_guessed, node_table

    model = loaded.model
    nodes = ", ".join(f"{letter} {path}" for letter, path in node_table(model).items()) or "none"
    facts = {
        "file": str(loaded.path) if loaded.path else None,
        "container": loaded.container,
        "layout": loaded.layout,
        "architecture": loaded.arch,
        "known by": loaded.evidence,
        **loaded.arch_args,
        "num_classes": loaded.num_classes,
        "in_channels": loaded.in_channels,
        "parameters": count_parameters(model),
        "normalisation": f"mean {_numbers_of(model.mean)}, std {_numbers_of(model.std)}" if model.mean else "none",
        "normalisation known by": loaded.normalised_by or "nothing says it; --data tries it out",
        "nodes": f"{nodes} (a guess)" if is_guessed(model) else nodes,
        "digest": loaded.digest,
        **{f"undecided: {key}": values for key, values in loaded.undecided.items()},
        **{f"allowed to be {key}": names for key, names in loaded.allowed_mismatch.items()},
        **{f"trained: {key}": value for key, value in _told(loaded.recipe).items()},
        **{f"measured: {key}": value for key, value in loaded.metrics.items()},
        **{f"the file says: {key}": value for key, value in loaded.training_facts.items()},
        "notes": list(loaded.notes),
    }
    return {key: _plain(value) for key, value in facts.items() if value not in (None, "", [])}


def _told(recipe: dict[str, Any]) -> dict[str, Any]:
    """The knobs that differ from their defaults, and those that people always ask for."""
    from coprobe.training import Recipe

    usual = Recipe().to_dict()
    always = ("method", "data", "eps_train", "epochs", "seed")
    return {key: value for key, value in recipe.items() if key in always or value != usual.get(key)}


def _plain(value: Any) -> Any:
    """`value`, which a file may have given, as strict JSON can hold it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a whole number of {value.bit_length()} bits"  # Python refuses to write the largest
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _numbers_of(numbers: Sequence[float] | None) -> str:
    return f"({', '.join(f'{number:.6g}' for number in numbers or ())})"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(_shown, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _rms(weight: Tensor) -> float:
    squares = sum(float(part.double().square().sum()) for part in weight.flatten().split(_CHUNK))
    return math.sqrt(squares / max(1, weight.numel()))


@dataclass(frozen=True)
class _Examined:
    """What the images say, and what a probing command would make of it."""

    data: str
    check: NormalisationCheck
    sentences: tuple[str, ...]

    def show(self) -> None:
        """Print it as tables."""
        scores = self.check.scores
        rows = [
            [score.name + (" (as loaded)" if score is self.check.loaded else ""), *_numbers(score)]
            for score in sorted(scores, key=lambda score: score.cross_entropy)
        ]
        title = f"normalisations on {len(scores[0].correct)} clean images of {self.data}"
        header = ["", "accuracy (%)", "cross-entropy"]
        print_table(title, header, rows, f"result: {self.check.sentence}")

    def plain(self) -> dict[str, Any]:
        """The same for JSON."""
        check = self.check

        def plain(score: Score) -> dict[str, Any]:
            known = score.normalisation
            tried = {"name": known.name, "mean": known.mean, "std": known.std, "arguments": dict(score.variant)}
            return {**tried, "accuracy": score.accuracy, "cross_entropy": score.cross_entropy}

        return {
            "data": self.data,
            "images": len(check.best.correct),
            "tried": [plain(score) for score in check.scores],
            "loaded": check.loaded.name,
            "best": check.best.name if check.any_fits and not check.is_open else None,
            "alike": [score.name for score in check.alike],
            "result": check.sentence,
            "decided": list(self.sentences),
        }


def _numbers(score: Score) -> list[str]:
    return [percent(score.accuracy), f"{score.cross_entropy:.3f}"]


def _examine(path: str, loaded: Checkpoint, dataset: Dataset) -> _Examined:
    from coprobe.checkpoint.fitting import decide
    from coprobe.checkpoint.normalisation_check import check_normalisation
    from coprobe.core.engine import choose_device

    dataset, changes = loaded.suited(dataset)
    for sentence in changes:
        message(f"{path}: {sentence}")
    check = check_normalisation(loaded, dataset, device=choose_device(), progress=progress)
    return _Examined(dataset.name, check, decide(loaded, check).sentences)
