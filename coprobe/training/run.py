"""The directory of a training run: what is in it, and how it is written and taken up again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from coprobe.checkpoint import Checkpoint, load
from coprobe.checkpoint.reader import open_checkpoint
from coprobe.core.files import atomic, sweep, write_json, write_table
from coprobe.errors import InputError, RunError
from coprobe.training.recipe import Recipe
from coprobe.verdict.rule import collapse_epoch

_FORMAT = "coprobe-resume/1"
#: What a finished run has; a new one in its place removes these and nothing else.
RUN_FILES = ("recipe.json", "checkpoint.pt", "best.pt", "history.csv")


@dataclass(frozen=True)
class Run:
    """A directory with `recipe.json`, `history.csv` (a row per epoch), `checkpoint.pt` (last) and `best.pt`.

    While the run is not finished, `resume.pt` holds what it needs to go on.
    """

    directory: Path

    @property
    def history(self) -> pd.DataFrame:
        """A row per epoch; raises `InputError` if there is none or it can't be read."""
        path = self.directory / "history.csv"
        try:
            return pd.read_csv(path)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: no readable history; train again, or name another run") from error

    @property
    def checkpoint(self) -> Path:
        """The last checkpoint."""
        return self.directory / "checkpoint.pt"

    @property
    def best(self) -> Path:
        """The checkpoint with the highest PGD-10 accuracy on the watched images; of equals the later."""
        return self.directory / "best.pt"

    @property
    def resumable(self) -> Path:
        """The state of an unfinished run."""
        return self.directory / "resume.pt"

    def about(self) -> dict[str, Any]:
        """`recipe.json`: the knobs, and under `provenance` and `outcome` what became of them."""
        path = self.directory / "recipe.json"
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(about, dict):
                return about
        except (OSError, ValueError):
            pass
        raise InputError(f"{path}: no readable recipe; train again with --overwrite, or name another run")

    @property
    def recipe(self) -> Recipe:
        """The recipe; raises `InputError` if there is none or it can't be read."""
        return Recipe.from_dict({k: v for k, v in self.about().items() if k not in ("provenance", "outcome")})

    @property
    def outcome(self) -> dict[str, Any] | None:
        """How the run ended: epochs, collapse_epoch, converged, best_epoch, ended_by, and the digests of its weights.

        None while it is not finished.
        """
        return self.about().get("outcome") if self.begun else None

    @property
    def digests(self) -> dict[str, str]:
        """Digests of the weights of a finished run, by `last` and `best`; none of one before these were kept."""
        return dict((self.outcome or {}).get("digests", {}))

    @property
    def begun(self) -> bool:
        """Whether there is a run, finished or not."""
        return (self.directory / "recipe.json").exists()

    def begin(self, recipe: Recipe, provenance: dict[str, Any]) -> None:
        """Make the directory ready for a new run; what an earlier one left there goes."""
        self.directory.mkdir(parents=True, exist_ok=True)
        # The old state goes first and the old recipe next: whenever this is cut short, what is left is the old run,
        # or no run yet.
        self.tidy()
        for name in RUN_FILES:
            (self.directory / name).unlink(missing_ok=True)
        write_json(self.directory / "recipe.json", {**recipe.to_dict(), "provenance": provenance})

    def save_epoch(self, checkpoint: Checkpoint, rows: Sequence[dict[str, Any]]) -> None:
        """Write the last checkpoint, the best one if this is it, and the history.

        Raises:
            RunError: the recipe is gone, and without it nobody could read what is written.
        """
        if not self.begun:
            raise RunError(f"{self.directory}: its recipe.json is gone, so somebody removed it; train again")
        accuracies = [row["pgd10"] for row in rows]
        row = {**rows[-1], "collapse_epoch": collapse_epoch(rows)}
        if row["pgd10"] >= max(accuracies):
            replace(checkpoint, metrics={**row, "selected": "epoch of best PGD-10"}).save(self.best)
        replace(checkpoint, metrics={**row, "selected": "last epoch"}).save(self.checkpoint)
        write_table(pd.DataFrame(rows), self.directory / "history.csv")

    def save_state(self, recipe: Recipe, state: dict[str, Any]) -> None:
        """Write `resume.pt`."""
        random = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
        with atomic(self.resumable) as temporary, temporary.open("wb") as file:
            torch.save({"format": _FORMAT, "recipe": recipe.to_dict(), "random": random, **state}, file)

    def load_state(self, recipe: Recipe) -> dict[str, Any]:
        """What `save_state` was given, on the CPU; the random generators are as they were then.

        Raises:
            InputError: the file can't be read, or it is of another recipe.
        """
        sweep(self.directory)
        try:
            with open_checkpoint(self.resumable) as contents:
                state = contents.loaded()
        except (InputError, OSError) as error:
            raise InputError(f"{self.resumable}: can't be read; start again with --overwrite") from error
        if not isinstance(state, dict) or state.get("format") != _FORMAT:
            raise InputError(f"{self.resumable}: is of another coprobe; start again with --overwrite")
        self.refuse_other(recipe, Recipe.from_dict(state.pop("recipe")))
        random = state.pop("random")
        torch.set_rng_state(random["cpu"])
        if len(random["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(random["cuda"])
        return {key: value for key, value in state.items() if key != "format"}

    def refuse_other(self, recipe: Recipe, begun: Recipe) -> None:
        """Raise `InputError` if `recipe` differs from the one that the run began with."""
        differences = recipe.differences(begun)
        if differences:
            raise InputError(f"{self.directory}: can't resume with {', '.join(differences)}; leave them out")

    def finish(self, outcome: dict[str, Any]) -> None:
        """Write how the run ended, with what weights; nothing is left to resume."""
        places = {"last": self.checkpoint, "best": self.best}
        digests = {which: load(path).digest for which, path in places.items() if path.exists()}
        write_json(self.directory / "recipe.json", {**self.about(), "outcome": {**outcome, "digests": digests}})
        self.tidy()

    def give_up(self) -> None:
        """Write that the run ended because it diverged, after the epochs that are there."""
        rows = self.history.to_dict("records") if (self.directory / "history.csv").exists() else []
        accuracies = [row["pgd10"] for row in rows]
        best = max(range(len(accuracies)), key=lambda place: (accuracies[place], place), default=-1) + 1
        ended = {"ended_by": "divergence", "epochs": len(accuracies), "best_epoch": best}
        self.finish({**ended, "collapse_epoch": collapse_epoch(rows), "converged": False})

    def tidy(self) -> None:
        """Remove what only an unfinished run needs, and what killed processes left half-written."""
        sweep(self.directory)
        self.resumable.unlink(missing_ok=True)
