"""Figures of whatever runs and checkpoints a person names, without the plan of the paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from coprobe.attacks import parse
from coprobe.attacks.examples import CLEAN
from coprobe.core.text import storable
from coprobe.data import title
from coprobe.errors import InputError, unknown
from coprobe.figures import fig01, fig03, fig04
from coprobe.metrics.accuracy import Evaluation
from coprobe.probe import Probe
from coprobe.training import Run

FIG4_ALPHA2 = (0.99, 0.5, 0.1)
FIG4_COMPARE = ("variance", "random")
FIG4_ATTACKS = ("fgsm", "pgd:50", "cw", "aa")


@dataclass(frozen=True)
class Drawn:
    """A figure, the numbers in it, and its file name without suffix."""

    name: str
    figure: Figure
    frame: pd.DataFrame


@dataclass(frozen=True)
class Source:
    """A run or checkpoint to draw: how to call it, its probe, and its run directory if it is a run."""

    label: str
    probe: Probe
    run: Run | None


def readable_attacks(evaluation: Evaluation, epsilon: float) -> pd.DataFrame:
    """The evaluation over draws, with attacks named as people read them ("PGD-50")."""
    frame = evaluation.over_draws()
    labels = {spec: "clean" if spec == CLEAN else parse(spec, epsilon).label for spec in frame["attack"].unique()}
    frame["attack"] = frame["attack"].map(labels)
    return frame


def figure1(sources: Sequence[Source]) -> Drawn:
    """Accuracy and V_act over the epochs, from history.csv."""
    histories = []
    for source in sources:
        if source.run is None:
            raise InputError(f"{source.label}: figure 1 needs a run directory with history.csv; a checkpoint has none")
        histories.append(source.run.history.assign(run=source.label))
    frame = pd.concat(histories, ignore_index=True)
    recipe = sources[0].probe.checkpoint.recipe
    data = title(str(recipe.get("data")))
    trained = f"{data}, trained at {recipe.get('eps_train', 0):g}/255, seed {recipe.get('seed')}"
    return Drawn("fig01", fig01.draw(frame, about=trained), frame)


def figure3(sources: Sequence[Source], nodes: Sequence[str] = ("A",)) -> Drawn:
    """T_act per channel, from PGD-10 on test images."""
    parts = []
    for source in sources:
        diagnosis = source.probe.diagnose()
        table = diagnosis.statistics.table()
        parts.append(table[table["node"].isin(nodes)].assign(run=source.label, kind=diagnosis.verdict))
    frame = pd.concat(parts, ignore_index=True)
    if frame.empty:
        raise InputError(f"no statistics at node {', '.join(nodes)}")
    return Drawn("fig03", fig03.draw(frame, about=sources[0].probe.caption), frame)


def figure4(sources: Sequence[Source], attacks: Sequence[str] = FIG4_ATTACKS) -> Drawn:
    """Accuracy of the first source with channels of node A masked."""
    probe = sources[0].probe
    masking = probe.mask("A", FIG4_ALPHA2, compare=FIG4_COMPARE, attacks=attacks)
    frame = readable_attacks(masking.evaluation, probe.epsilon).assign(run=sources[0].label)
    return Drawn("fig04", fig04.draw(frame, about=f"{sources[0].label}: {probe.caption}"), frame)


FIGURES: dict[int, Callable[[Sequence[Source]], Drawn]] = {1: figure1, 3: figure3, 4: figure4}


def draw(number: int, sources: Sequence[Source]) -> Drawn:
    """Draw figure `number` of the paper from runs; `InputError` for a number that can't be drawn."""
    if number not in FIGURES:
        raise unknown("figure", str(number), map(str, FIGURES))
    return FIGURES[number](sources)


def source(path: str | Path, make_probe: Callable[[str | Path], Probe]) -> Source:
    """The run directory or checkpoint file at `path`, ready to be drawn."""
    directory = Path(path)
    run = Run(directory) if directory.is_dir() else None
    return Source(storable(directory.name if run else directory.stem), make_probe(path), run)
