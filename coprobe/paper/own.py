"""Figures 1, 3 and 4 of whatever runs and checkpoints a person names, without the plan of the paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from coprobe.core.text import storable
from coprobe.data import title
from coprobe.errors import InputError, unknown
from coprobe.figures import fig01, fig03, fig04
from coprobe.probe import Probe
from coprobe.training import Run


@dataclass(frozen=True)
class OwnModel:
    """A model to draw.

    Attributes:
        label: what it is called.
        probe: its checkpoint with the images to attack.
        run: its run directory, if it comes from one.
        attacks: of Fig. 4.
    """

    label: str
    probe: Probe
    run: Run | None = None
    attacks: tuple[str, ...] = ("fgsm", "pgd:50", "cw", "aa")


def model_at(path: str | Path, make_probe: Callable[[str | Path], Probe]) -> OwnModel:
    """The run directory or checkpoint file at `path`, ready to be drawn."""
    directory = Path(path)
    run = Run(directory) if directory.is_dir() else None
    return OwnModel(storable(directory.name if run else directory.stem), make_probe(path), run)


def draw(number: int, models: Sequence[OwnModel]) -> tuple[Figure, pd.DataFrame]:
    """A figure of the paper (1, 3 or 4) of these models, and the numbers in it.

    Raises:
        InputError: another number, or what the figure needs is not there.
    """
    if number not in FIGURES:
        raise unknown("figure", str(number), map(str, FIGURES))
    return FIGURES[number](models)


def _histories(models: Sequence[OwnModel]) -> tuple[Figure, pd.DataFrame]:
    """Fig. 1: accuracy and V_act over the epochs."""
    histories = []
    for model in models:
        if model.run is None:
            raise InputError(f"{model.label}: figure 1 needs a run directory with history.csv; a checkpoint has none")
        histories.append(model.run.history.assign(run=model.label))
    frame = pd.concat(histories, ignore_index=True)
    recipe = models[0].probe.checkpoint.recipe
    data = title(str(recipe.get("data")))
    trained = f"{data}, trained at {recipe.get('eps_train', 0):g}/255, seed {recipe.get('seed')}"
    return fig01.draw(frame, about=trained), frame


def _salient(models: Sequence[OwnModel]) -> tuple[Figure, pd.DataFrame]:
    """Fig. 3: T_act of every channel at node A."""
    parts = []
    for model in models:
        diagnosis = model.probe.diagnose()
        table = diagnosis.statistics.table()
        parts.append(table[table["node"] == "A"].assign(run=model.label, kind=diagnosis.verdict))
    frame = pd.concat(parts, ignore_index=True)
    return fig03.draw(frame, about=models[0].probe.caption), frame


def _masked(models: Sequence[OwnModel]) -> tuple[Figure, pd.DataFrame]:
    """Fig. 4: accuracy of the first model with channels of node A masked."""
    model = models[0]
    masking = model.probe.mask("A", fig04.ALPHA2, compare=fig04.COMPARED, attacks=model.attacks)
    frame = masking.evaluation.table().assign(run=model.label)
    return fig04.draw(frame, about=f"{model.label}: {model.probe.caption}"), frame


FIGURES = {1: _histories, 3: _salient, 4: _masked}
