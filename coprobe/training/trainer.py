"""A training run from a recipe to its directory: set up, watched, saved, interrupted and resumed."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from coprobe.checkpoint.normalisation_check import converged
from coprobe.core.files import check_writable_directory
from coprobe.core.processes import ALONE, Processes
from coprobe.core.switches import usual_torch
from coprobe.data import Dataset
from coprobe.errors import DivergedError, InputError, InterruptedRunError, RunError
from coprobe.training.assembly import Assembly, assemble
from coprobe.training.interruption import Interruption
from coprobe.training.loop import TrainingLoop
from coprobe.training.methods import make_method
from coprobe.training.monitor import peak_memory
from coprobe.training.recipe import Recipe
from coprobe.training.run import Run
from coprobe.verdict.rule import collapse_epoch

#: Updates between two checks that the numbers are finite; each check waits for the device.
_CHECK_EVERY = 50
#: The state is saved after an epoch unless saving would take more than this fraction of the time.
_SAVING_SHARE = 0.1
#: What the weights depend on bit for bit, besides the recipe and the images.
_SAME_BITS = ("torch", "device", "threads", "processes")


def _nothing(*_: Any) -> None:
    pass


@dataclass(frozen=True)
class TrainingCallback:
    """Functions that a run calls as it goes on.

    Args:
        on_batch: called with the number of images after every update.
        on_epoch: called with the row of history.csv after every epoch.
        on_message: called with a sentence when something happens: a collapse, the end, where it goes on.
    """

    on_batch: Callable[[int], None] = _nothing
    on_epoch: Callable[[dict[str, Any]], None] = _nothing
    on_message: Callable[[str], None] = _nothing


@usual_torch()
def train(
    recipe: Recipe,
    out: str | Path,
    *,
    device: torch.device | str = "cpu",
    processes: Processes = ALONE,
    data: Dataset | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    save_minutes: float = 10.0,
    compiled: bool = False,
    callback: TrainingCallback | None = None,
) -> Run:
    """Train a checkpoint.

    Args:
        recipe: every knob.
        out: the run directory to make.
        device: where to train; of several processes, this one's own.
        processes: those that train together (see `coprobe.core.processes`); one of them writes.
        data: the training set; None loads `recipe.data`.
        skip_bad: leave out images that can't be read, where any are loaded, instead of refusing them.
        overwrite: replace the files of a run that is there already.
        resume: go on with an interrupted run; a finished one is left as it is, and where there is none, a new one
            begins.
        save_minutes: the longest time between two saves of the state within an epoch.
        compiled: run the passes through torch.compile.
        callback: what is called after batches, epochs and events.

    Raises:
        InputError: a recipe that can't be followed, a run that is there already, another recipe or other images than
            those of the run to resume, a directory that can't be written.
        InterruptedRunError: SIGTERM or SIGINT came; the state is saved, mid-epoch too.
        RunError: losses or weights are not finite, or a file can't be written; what was saved before is kept.
    """
    run = Run(check_writable_directory(out))
    callback = callback or TrainingCallback()
    _refuse(recipe, run, overwrite=overwrite, resume=resume)
    if resume and run.outcome:
        if processes.leads:
            run.tidy()  # it may have been killed just before this
        callback.on_message(f"{out}: finished already, nothing to resume")
        return run
    assembly = assemble(recipe, torch.device(device), processes, data=data, skip_bad=skip_bad, compiled=compiled)
    job = _Job(recipe, run, assembly, callback, save_minutes)
    if resume and run.resumable.exists():
        job.resume()
    elif processes.leads:
        run.begin(recipe, assembly.facts)
    try:
        with job.interruption:
            job.work()
    except OSError as error:
        if error.filename is None:  # not about a file: stdout or stderr is closed
            raise
        raise RunError(f"{error.filename}: {error.strerror}; once that is mended, {_again(run)}") from error
    return run


def _refuse(recipe: Recipe, run: Run, *, overwrite: bool, resume: bool) -> None:
    """Raise `InputError` if the directory holds a run that must not be replaced or can't be resumed."""
    if resume and run.begun:
        run.refuse_other(recipe, run.recipe)
    if (run.checkpoint.exists() or run.resumable.exists()) and not (overwrite or resume):
        raise InputError(f"{run.directory}: holds a run already; choose another --out, or pass --resume or --overwrite")


def _again(run: Run) -> str:
    return f"'coprobe train --resume --out {shlex.quote(str(run.directory))}' goes on"


class _StopError(Exception):
    """Leaves an evaluation when a signal has asked the run to stop."""


@dataclass
class _Job:
    """This process's part of a run."""

    recipe: Recipe
    run: Run
    assembly: Assembly
    callback: TrainingCallback
    save_minutes: float
    interruption: Interruption = field(default_factory=Interruption)
    rows: list[dict[str, Any]] = field(default_factory=list)
    #: Accuracy under PGD-5 in training mode after the last epoch, for --early-stop.
    watched: float = 0.0
    _saved_at: float = field(default_factory=time.perf_counter)
    _saving_took: float = 0.0

    @property
    def loop(self) -> TrainingLoop:
        return self.assembly.loop

    @property
    def processes(self) -> Processes:
        return self.loop.context.processes

    def resume(self) -> None:
        """Go on from the run's saved state."""
        state = self.run.load_state(self.recipe)
        if state["data_digest"] != self.assembly.facts["data_digest"]:
            raise InputError(f"{self.recipe.data}: other training images than when {self.run.directory} began")
        self.loop.load(state["loop"])
        self.rows, self.watched = state["rows"], state["watched"]
        self._compare(self.run.about()["provenance"])
        done = self.loop.epoch + self.loop.number / self.loop.updates
        self.callback.on_message(f"{self.run.directory}: resumed after {done:.2f} of {self.recipe.epochs} epochs")
        images = self.loop.loader.images * self.loop.method.updates_per_batch
        self.callback.on_batch(round(done * images))

    def _compare(self, begun: dict[str, Any]) -> None:
        """Tell what has changed since the run began and makes the weights differ in their last bits."""
        now = self.assembly.facts
        changed = [f"{key} {now[key]} (not {begun[key]})" for key in _SAME_BITS if begun.get(key, now[key]) != now[key]]
        if changed:
            self.callback.on_message(f"{self.run.directory}: goes on with {', '.join(changed)}, so not bit for bit")

    def work(self) -> None:
        """Train until the run ends or is interrupted."""
        ended_by = self._ending() if self.rows else None
        while ended_by is None:
            ended_by = self._epoch()
        if self.processes.leads:
            self.run.finish(self._outcome(ended_by))

    def _epoch(self) -> str | None:
        """Train one epoch; returns why the run ends with it, if it does."""
        for batch in self.loop.run_epoch():
            self.callback.on_batch(len(batch.whole))
            self._pause()
        epoch = self.loop.epoch
        self._check_finite()
        row = self._measure()
        if self.recipe.early_stop:
            before, self.watched = self.watched, self._training_accuracy()
            if self.watched < before - 0.2:
                self.callback.on_message(
                    f"epoch {epoch + 1}: PGD-5 accuracy on training images dropped from {100 * before:.1f} % to "
                    f"{100 * self.watched:.1f} %; the weights before are kept"
                )
                return "--early-stop"
        row = (
            {"epoch": epoch + 1, "lr": self.recipe.learning_rate(epoch / self.recipe.epochs)}
            | self.loop.end_epoch()
            | row
        )
        row["peak_memory_mib"] = peak_memory(self.loop.context.device)
        self.rows.append(row)
        if self.processes.leads:
            self.run.save_epoch(self.assembly.checkpoint, self.rows)
            self._announce()
        self.callback.on_epoch(row)
        ended_by = self._ending()
        since = time.perf_counter() - self._saved_at
        if ended_by is None and self.processes.broadcast(since >= self._saving_took / _SAVING_SHARE):
            self._save()
        return ended_by

    def _ending(self) -> str | None:
        row = self.rows[-1]
        if self.recipe.stops_after(row["fgsm"], row["pgd10"]):
            return "--stop-at-collapse"
        return "the schedule" if row["epoch"] == self.recipe.epochs else None

    def _pause(self) -> None:
        """Between two updates: check that the numbers are finite, save if it is time, and stop if a signal came."""
        due = self.loop.number % _CHECK_EVERY == 0
        if due:
            self._check_finite()
        if self.processes.world_size == 1 or due or self.loop.number == self.loop.updates:
            stop = self.processes.any(self.interruption.signal is not None, self.loop.context.device)
            overdue = time.perf_counter() - self._saved_at > 60 * self.save_minutes
            if stop or self.processes.broadcast(overdue):
                self._check_finite()  # a diverged state must not replace the one to go back to
                self._save()
            if stop:
                raise self._interrupted()

    def _interrupted(self) -> InterruptedRunError:
        return InterruptedRunError(
            f"stopped in epoch {self.loop.epoch + 1} and saved; {_again(self.run)}", self.interruption.signal or 15
        )

    def _save(self) -> None:
        began = time.perf_counter()
        state = {
            "loop": self.loop.state(),
            "rows": self.rows,
            "watched": self.watched,
            "data_digest": self.assembly.facts["data_digest"],
        }
        if self.processes.leads:
            self.run.save_state(self.recipe, state)
        # The others wait for process 0, which would be stopped before the file is complete if one of them left first.
        self._saving_took = self.processes.broadcast(time.perf_counter() - began)
        self._saved_at = time.perf_counter()

    def _check_finite(self) -> None:
        if not self.loop.is_finite():
            raise DivergedError(
                f"training diverged in epoch {self.loop.epoch + 1} (its losses or weights are not finite); "
                f"{self._kept}; lower --lr"
            )

    @property
    def _kept(self) -> str:
        return "the checkpoints of the epochs before are kept" if self.rows else "no checkpoint was written"

    def _measure(self) -> dict[str, float]:
        """The accuracies of the epoch, measured by process 0."""
        began = time.perf_counter()
        model = self.assembly.checkpoint.model
        row: dict[str, float] = {}
        failure = None
        if self.processes.leads:
            try:
                model.precision = "32"  # as whoever loads the checkpoint will measure it
                row = self.assembly.monitor.measure(model, self._check_stop)
            except _StopError:
                self._save()
                raise self._interrupted() from None
            except RunError as error:
                what, _, _ = str(error).partition(";")  # its remedy is not one for training
                failure = f"epoch {self.loop.epoch + 1} can't be measured: {what}; {self._kept}; lower --lr"
            finally:
                model.precision = self.recipe.precision
        failure = self.processes.broadcast(failure)  # or the others would wait forever
        if failure:
            raise DivergedError(failure)
        row["seconds"] = self.loop.seconds + time.perf_counter() - began
        return self.processes.broadcast(row)

    def _check_stop(self, images: int) -> None:
        if self.interruption.signal is not None and self.processes.world_size == 1:
            raise _StopError

    def _training_accuracy(self) -> float:
        """Accuracy under PGD-5 in training mode on the epoch's first batch, a fraction.

        As in the public code of FGSM-RS, but what the passes do to the running statistics is undone.
        """
        batch = next(self.loop.loader.batches(self.loop.epoch))
        buffers = {name: value.clone() for name, value in self.loop.model.named_buffers()}
        self.loop.model.train()
        attack = make_method("pgd-at", {"iterations": 5}, epsilon=self.recipe.eps_train / 255)
        update = replace(self.loop.state_of(batch, 0, {}), keep_graph=False)
        images = attack.perturb(update).images
        with torch.no_grad():
            correct = (self.loop.model(images).argmax(1) == batch.labels).sum()
            for name, value in self.loop.model.named_buffers():
                value.copy_(buffers[name])
        return float(self.processes.sum(correct)) / len(batch.whole)

    def _announce(self) -> None:
        """Report a collapse in the first epoch that shows it."""
        epoch = collapse_epoch(self.rows)
        if epoch is not None and collapse_epoch(self.rows[:-1]) is None:
            row, before = self.rows[epoch - 1], [row["pgd10"] for row in self.rows[: epoch - 1]]
            highest = f", at most {100 * max(before):.1f} % before" if before else ""
            self.callback.on_message(
                f"catastrophic overfitting in epoch {epoch}: "
                f"accuracy {100 * row['pgd10']:.1f} % under PGD-10{highest}; {100 * row['fgsm']:.1f} % under FGSM"
            )

    def _outcome(self, ended_by: str) -> dict[str, Any]:
        accuracies = [row["pgd10"] for row in self.rows]
        learnt = bool(self.rows) and converged(self.rows[-1]["clean"], self.assembly.checkpoint.num_classes)
        if not learnt:
            self.callback.on_message("did not converge: clean accuracy is no better than guessing; no result")
        best = max(range(len(accuracies)), key=lambda place: (accuracies[place], place)) + 1
        return {
            "ended_by": ended_by,
            "epochs": len(self.rows),
            "best_epoch": best,
            "collapse_epoch": collapse_epoch(self.rows),
            "converged": learnt,
        }
