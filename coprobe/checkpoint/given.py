"""Whatever a person has of a model in Python, as a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from os import PathLike
from typing import TypeAlias

from torch import nn

from coprobe.checkpoint.checkpoint import Checkpoint
from coprobe.checkpoint.loading import load
from coprobe.checkpoint.wrapping import Images, wrap
from coprobe.errors import InputError

#: The path of a file or a run directory, a `Checkpoint`, or a network in Python.
Model: TypeAlias = "Checkpoint | nn.Module | str | PathLike[str]"


def as_checkpoint(
    model: Model,
    preprocess: Sequence[Sequence[float]] | Images | None = None,
    *,
    image_shapes: Sequence[tuple[int, int, int]] = (),
) -> Checkpoint:
    """A file read, a checkpoint as it is, or a network in Python around which one is made.

    Args:
        model: which of them; what else can be said of a file, `load` takes, and of a network, `wrap`.
        preprocess: what a network in Python expects to be done to images in [0, 1], see `wrap`.
        image_shapes: (channels, height, width) that the images may have which a network in Python is going to see; the
            first that it takes counts.

    Raises:
        InputError: none of these, a `preprocess` for a model that has its own, and what `load` and `wrap` raise.
    """
    if isinstance(model, nn.Module):
        try:
            return wrap(model, preprocess, image_shape=next(iter(image_shapes), None))
        except InputError:
            for shape in image_shapes[1:]:
                with suppress(InputError):
                    return wrap(model, preprocess, image_shape=shape)
            raise
    if preprocess is not None:
        raise InputError(
            "preprocess is for a network in Python; of a file say it with coprobe.load(path, mean=…, std=…)"
        )
    if isinstance(model, Checkpoint):
        return model
    if isinstance(model, str | PathLike):
        return load(str(model))
    raise InputError(f"a {type(model).__name__} is no model; give a path, a Checkpoint or a torch.nn.Module")
