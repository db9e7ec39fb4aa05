"""The demo: a CO-affected model and its stable twin, trained, probed and masked within minutes on a laptop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from coprobe.checkpoint import load as load_checkpoint
from coprobe.core.defaults import ATTACKS
from coprobe.core.engine import Progress, one_thread, silent
from coprobe.data import load as load_data
from coprobe.errors import InputError
from coprobe.figures import fig04
from coprobe.figures.style import save_all
from coprobe.masking import Masking
from coprobe.paper.own import FIGURES, OwnModel, draw
from coprobe.probe import Probe
from coprobe.training import PRESETS, Recipe, Run, TrainingCallback, train
from coprobe.verdict.diagnosis import Diagnosis

#: FGSM on scikit-learn's digits at a radius where it collapses.
COLLAPSING = Recipe(**PRESETS["demo"])
#: The same with L_stable (Eq. 8), which does not collapse; fewer epochs and smaller steps keep it on its way.
STABILISED = replace(COLLAPSING, stable_node="B", stable_weight=20.0, epochs=5, lr=0.02)

#: Run directory to title and recipe.
RECIPES = {"co": ("FGSM", COLLAPSING), "stable": ("FGSM with L_stable", STABILISED)}


@dataclass(frozen=True)
class Story:
    """What the demo found: by name of the run, its diagnosis and its masks, and the files that were written."""

    diagnoses: dict[str, Diagnosis]
    maskings: dict[str, Masking]
    figures: list[Path]


def refuse_others(out: Path) -> None:
    """Raise `InputError` if `out` holds a run in the place of one of the demo's, which would be replaced."""
    for name, (_, unseeded) in RECIPES.items():
        begun = Run(out / name)
        if begun.begun and replace(begun.recipe, seed=unseeded.seed) != unseeded:
            raise InputError(f"{begun.directory}: holds a run that is not the demo's; choose another --out")


def run(
    out: Path,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
    on_epoch: Callable[[str, dict[str, Any]], None] = lambda name, row: None,
) -> Story:
    """Train both models into `out`/co and `out`/stable, probe and mask them, draw Figs. 1, 3 and 4.

    Args:
        out: directory; what an earlier demo left there is replaced.
        seed: of both trainings and of the attacks.
        device: where to work.
        progress: shows how far training and attacks are.
        on_epoch: called with the run's name and its row of history.csv.

    Raises:
        InputError: another run is in the place of one of these.
    """
    refuse_others(out)
    models, diagnoses, maskings = [], {}, {}
    test = load_data(COLLAPSING.data)
    for name, (title, unseeded) in RECIPES.items():
        recipe = replace(unseeded, seed=seed)
        # one thread: at these sizes a second gains little, and other last digits grow into another model
        with one_thread(), progress(f"training {name}", (recipe.limit_train or 0) * recipe.epochs) as advance:
            train(
                recipe,
                out / name,
                device=device,
                overwrite=True,
                callback=TrainingCallback(advance, lambda row, name=name: on_epoch(name, row)),  # type: ignore[misc]
            )
        checkpoint = load_checkpoint(out / name)
        probe = Probe(
            checkpoint, test, epsilon=recipe.eps_train / 255, device=device, seed=seed, cache=out / name / "stats",
            progress=progress,
        )  # fmt: skip
        with probe.keeping():
            diagnoses[name] = probe.diagnose()
            # exactly what figure 4 asks for, so that it finds it in the cache
            maskings[name] = probe.mask("A", fig04.ALPHA2, compare=fig04.COMPARED, attacks=ATTACKS)
        models.append(OwnModel(f"{title}: {diagnoses[name].verdict}", probe, Run(out / name), ATTACKS))
    figures = []
    for number in FIGURES:
        figure, frame = draw(number, models)
        figures += save_all(figure, frame, out / "figures", f"fig{number:02d}", models[0].probe.facts)
    return Story(diagnoses, maskings, figures)
