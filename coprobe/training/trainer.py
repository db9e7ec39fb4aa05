"""A training run from a recipe to its directory: set up, watched, saved, interrupted and resumed."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch

from coprobe.checkpoint import Checkpoint
from coprobe.checkpoint import load as load_checkpoint
from coprobe.collapse import collapse_epoch, converged
from coprobe.data import Dataset, Loader, hold_out, load
from coprobe.errors import InputError, InterruptedRunError, RunError
from coprobe.files import check_writable_directory
from coprobe.models import Classifier, build, defaults
from coprobe.nodes import resolve
from coprobe.provenance import provenance
from coprobe.training.interruption import Interruption
from coprobe.training.loop import TrainingLoop
from coprobe.training.methods import Method, make_method
from coprobe.training.monitor import Monitor, peak_memory
from coprobe.training.parallel import ALONE, Processes, synchronise_batchnorm
from coprobe.training.recipe import Recipe
from coprobe.training.regularizers import ChannelDivergence, FeatureStability, LogitStability, Regularizer
from coprobe.training.run import Run
from coprobe.training.step import Setting

#: Updates between two looks at whether the numbers are finite; each look waits for the device.
_LOOK_EVERY = 50
#: The state is saved after an epoch unless that would take more than this part of the time.
_SAVING_SHARE = 0.1


def _nothing(*_: Any) -> None:
    pass


@dataclass(frozen=True)
class Listener:
    """Who wants to know how far a run is.

    Args:
        on_batch: called with the number of images after every update.
        on_epoch: called with the row of history.csv after every epoch.
        on_message: called with a sentence when something happens: a collapse, the end, where it goes on.
    """

    on_batch: Callable[[int], None] = _nothing
    on_epoch: Callable[[dict[str, Any]], None] = _nothing
    on_message: Callable[[str], None] = _nothing


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    device: torch.device | str = "cpu",
    processes: Processes = ALONE,
    data: Dataset | None = None,
    overwrite: bool = False,
    resume: bool = False,
    save_minutes: float = 10.0,
    compiled: bool = False,
    listener: Listener | None = None,
) -> Run:
    """Train a checkpoint.

    Args:
        recipe: every knob.
        out: the run directory to make.
        device: where to train; of several processes, this one's own.
        processes: those that train together (see `parallel.start`); one of them writes.
        data: the training set; None loads `recipe.data`.
        overwrite: replace the files of a run that is there already.
        resume: go on with a run that was interrupted; one that is finished is left as it is, and a new one begins
            where there is none.
        save_minutes: the longest time between two saves of the state within an epoch.
        compiled: run the passes through torch.compile.
        listener: hears of batches, epochs and events.

    Raises:
        InputError: a recipe that can't be followed, a run that is there already, another recipe or other images than
            those of the run to resume, a directory that can't be written.
        InterruptedRunError: SIGTERM or SIGINT came; the state is saved, mid-epoch too.
        RunError: losses or weights are not finite, or a file can't be written; what was saved before is kept.
    """
    run = Run(check_writable_directory(out))
    listener = listener or Listener()
    if resume and run.begun:
        run.refuse_other(recipe, run.recipe)
        if run.outcome:
            if processes.leads:
                run.tidy()  # a kill may have come right before
            listener.on_message(f"{out}: finished already, nothing to resume")
            return run
    if (run.checkpoint.exists() or run.resumable.exists()) and not (overwrite or resume):
        raise InputError(f"{out}: holds a run already; choose another --out, or pass --resume or --overwrite")
    job = _Job.of(recipe, run, torch.device(device), processes, data, compiled, listener, save_minutes)
    if resume and run.resumable.exists():
        job.take_up()
    elif processes.leads:
        run.begin(recipe, job.facts)
    try:
        with Interruption() as job.interruption:
            job.work()
    except OSError as error:
        if error.filename is None:  # not about a file: whoever listens has hung up
            raise
        raise RunError(f"{error.filename}: {error.strerror}; once that is mended, {_again(run)}") from error
    return run


def _again(run: Run) -> str:
    return f"'coprobe train --resume --out {shlex.quote(str(run.directory))}' goes on"


class _AskedError(Exception):
    """The interruption that was noted, on its way out of an evaluation."""


@dataclass
class _Job:
    """A run in one process."""

    recipe: Recipe
    run: Run
    loop: TrainingLoop
    monitor: Monitor
    checkpoint: Checkpoint
    facts: dict[str, Any]
    listener: Listener
    save_minutes: float
    interruption: Interruption = field(default_factory=Interruption)
    rows: list[dict[str, Any]] = field(default_factory=list)
    #: Accuracy under PGD-5 in training mode after the last epoch, for --early-stop.
    watched: float = 0.0
    _saved_at: float = field(default_factory=time.perf_counter)
    _saving_took: float = 0.0

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        run: Run,
        device: torch.device,
        processes: Processes,
        data: Dataset | None,
        compiled: bool,
        listener: Listener,
        save_minutes: float,
    ) -> _Job:
        """Everything that a recipe describes; whatever can't be followed is found here, before the work."""
        training, held_out = hold_out(data or load(recipe.data, "train"), recipe.limit_train, recipe.held_out)
        watched = held_out if recipe.watch == "held-out" else load(recipe.data, "test", limit=recipe.held_out)
        torch.manual_seed(recipe.seed)
        checkpoint = _untrained(recipe, training, device)
        loader = _loader(recipe, training, device, processes)
        setting = Setting(
            training, device, recipe.batch_size, loader.padding if loader.augment else 0, recipe.epochs, recipe.phases,
            processes,
        )  # fmt: skip
        method = _method(recipe)
        terms = _regularizers(recipe, method, checkpoint.model)
        if recipe.sync_batchnorm and processes.count > 1:
            synchronise_batchnorm(checkpoint.model)
        if compiled and (processes.count > 1 or recipe.co_node or not method.compiles):
            raise InputError("--compile works with one process only, without --co-node, and not with gradalign")
        loop = TrainingLoop(recipe, checkpoint.model, method, terms, loader, setting, compiled=compiled)
        checkpoint = replace(checkpoint, model=cast(Classifier, loop.evaluated))
        monitor = Monitor(watched, recipe.evaluation_epsilon, device, recipe.seed)
        facts = provenance(
            seed=recipe.seed,
            device=str(device),
            processes=processes.count,
            threads=torch.get_num_threads(),
            data_digest=training.digest(),
            images=len(training),
            held_out=len(held_out),
            watched=f"{len(watched)} {'held-out training' if watched is held_out else 'test'} images",
        )
        return cls(recipe, run, loop, monitor, checkpoint, facts, listener, save_minutes)

    @property
    def processes(self) -> Processes:
        return self.loop.setting.processes

    def take_up(self) -> None:
        """Go on from the run's saved state."""
        state = self.run.load_state(self.recipe)
        if state["data_digest"] != self.facts["data_digest"]:
            raise InputError(f"{self.recipe.data}: other training images than when {self.run.directory} began")
        self.loop.load(state["loop"])
        self.rows, self.watched = state["rows"], state["watched"]
        done = self.loop.epoch + self.loop.number / self.loop.updates
        self.listener.on_message(f"{self.run.directory}: resumed after {done:.2f} of {self.recipe.epochs} epochs")
        images = self.loop.loader.images * self.loop.method.updates_per_batch
        self.listener.on_batch(round(done * images))

    def work(self) -> None:
        """Epoch after epoch, to the end or to an interruption."""
        ended_by = self._ending() if self.rows else None
        while ended_by is None:
            ended_by = self._epoch()
        if self.processes.leads:
            self.run.finish(self._outcome(ended_by))

    def _epoch(self) -> str | None:
        """One epoch; why the run ends with it, if it does."""
        for batch in self.loop.run_epoch():
            self.listener.on_batch(len(batch.whole))
            self._pause()
        epoch = self.loop.epoch
        self._check_finite()
        row = self._measure()
        if self.recipe.early_stop and self._drops():
            self.listener.on_message(
                f"epoch {epoch + 1}: PGD-5 accuracy on training images dropped; the weights before are kept"
            )
            return "early stop"
        row = (
            {"epoch": epoch + 1, "lr": self.recipe.learning_rate(epoch / self.recipe.epochs)}
            | self.loop.end_epoch()
            | row
        )
        row["peak_memory_mib"] = peak_memory(self.loop.setting.device)
        self.rows.append(row)
        if self.processes.leads:
            self.run.save_epoch(self.checkpoint, self.rows)
            self._announce()
        self.listener.on_epoch(row)
        ended_by = self._ending()
        since = time.perf_counter() - self._saved_at
        if ended_by is None and self.processes.share(since >= self._saving_took / _SAVING_SHARE):
            self._save()
        return ended_by

    def _ending(self) -> str | None:
        row = self.rows[-1]
        if self.recipe.stops_after(row["fgsm"], row["pgd10"]):
            return "collapse"
        return "schedule" if row["epoch"] == self.recipe.epochs else None

    def _pause(self) -> None:
        """Between two updates: heed an interruption, save if it is time, see that the numbers are finite."""
        look = self.loop.number % _LOOK_EVERY == 0
        if look:
            self._check_finite()
        if self.processes.count == 1 or look:
            asked = self.processes.any(self.interruption.signal is not None, self.loop.setting.device)
            overdue = time.perf_counter() - self._saved_at > 60 * self.save_minutes
            if asked or self.processes.share(overdue):
                self._check_finite()  # or a lost run would take the place of the state to go back to
                self._save()
            if asked:
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
            "data_digest": self.facts["data_digest"],
        }
        if self.processes.leads:
            self.run.save_state(self.recipe, state)
        self._saved_at = time.perf_counter()
        self._saving_took = self._saved_at - began

    def _check_finite(self) -> None:
        if not self.loop.is_finite():
            raise RunError(
                f"training diverged in epoch {self.loop.epoch + 1} (its losses or weights are not finite); "
                f"{self._kept}; lower --lr"
            )

    @property
    def _kept(self) -> str:
        return "the checkpoints of the epochs before are kept" if self.rows else "no checkpoint was written"

    def _measure(self) -> dict[str, float]:
        """The accuracies of the epoch, measured by process 0."""
        began = time.perf_counter()
        model = self.checkpoint.model
        row: dict[str, float] = {}
        if self.processes.leads:
            try:
                model.precision = "32"  # what anybody who reads the checkpoint will measure
                row = self.monitor.measure(model, self._heed)
            except _AskedError:
                self._save()
                raise self._interrupted() from None
            except RunError as error:
                raise RunError(f"epoch {self.loop.epoch + 1} can't be measured: {error}; {self._kept}") from error
            finally:
                model.precision = self.recipe.precision
        row["seconds"] = self.loop.seconds + time.perf_counter() - began
        return self.processes.share(row)

    def _heed(self, images: int) -> None:
        if self.interruption.signal is not None and self.processes.count == 1:
            raise _AskedError

    def _drops(self) -> bool:
        """Whether accuracy under PGD-5 in training mode, on the epoch's first batch, fell by more than 0.2.

        As in the public code of FGSM-RS; but what the passes do to the running statistics is undone.
        """
        batch = next(self.loop.loader.batches(self.loop.epoch))
        buffers = {name: value.clone() for name, value in self.loop.model.named_buffers()}
        self.loop.model.train()
        attack = make_method("pgd-at", {"iterations": 5}, epsilon=self.recipe.eps_train / 255, seed=self.recipe.seed)
        attack.prepare(self.loop.setting)
        attack.begin_step(self.loop.epoch, 0)
        images = attack.perturb(self.loop.model, batch, keep_graph=False).images
        with torch.no_grad():
            correct = (self.loop.model(images).argmax(1) == batch.labels).sum()
            for name, value in self.loop.model.named_buffers():
                value.copy_(buffers[name])
        before, self.watched = self.watched, float(self.processes.sum(correct)) / len(batch.whole)
        return self.watched < before - 0.2

    def _announce(self) -> None:
        """Say when the epochs so far show a collapse that those before did not."""
        accuracies = [row["pgd10"] for row in self.rows]
        epoch = collapse_epoch(accuracies)
        if epoch is not None and collapse_epoch(accuracies[:-1]) is None:
            self.listener.on_message(
                f"catastrophic overfitting in epoch {epoch}: PGD-10 accuracy {100 * accuracies[epoch - 1]:.1f} %, "
                f"at most {100 * max(accuracies):.1f} % before"
            )

    def _outcome(self, ended_by: str) -> dict[str, Any]:
        accuracies = [row["pgd10"] for row in self.rows]
        learnt = bool(self.rows) and converged(self.rows[-1]["clean"], self.checkpoint.num_classes)
        if not learnt:
            self.listener.on_message("did not converge: clean accuracy is no better than guessing; no result")
        best = max(range(len(accuracies)), key=lambda place: (accuracies[place], place)) + 1
        return {
            "ended_by": ended_by,
            "epochs": len(self.rows),
            "best_epoch": best,
            "collapse_epoch": collapse_epoch(accuracies),
            "converged": learnt,
        }


def _untrained(recipe: Recipe, training: Dataset, device: torch.device) -> Checkpoint:
    """The model to begin with, and its description."""
    arch_args = {**defaults(recipe.arch), "num_classes": training.num_classes, "in_channels": training.image_shape[0]}
    if recipe.width is not None:
        arch_args["width"] = recipe.width
    model = Classifier(build(recipe.arch, **arch_args))
    if recipe.init is not None:
        model.network.load_state_dict(_initial_weights(recipe.init, recipe.arch, arch_args))
    model.precision = recipe.precision
    model.to(device).to(memory_format=torch.channels_last)
    return Checkpoint(model, recipe.arch, arch_args, recipe.to_dict(), image_shape=training.image_shape)


def _initial_weights(path: str, arch: str, arch_args: dict[str, Any]) -> dict[str, torch.Tensor]:
    initial = load_checkpoint(path)
    if (initial.arch, initial.arch_args) != (arch, arch_args):
        raise InputError(f"--init {path}: is a {initial.arch} {initial.arch_args}, not a {arch} {arch_args}")
    return initial.model.network.state_dict()


def _method(recipe: Recipe) -> Method:
    return make_method(
        recipe.method,
        recipe.options,
        epsilon=recipe.eps_train / 255,
        step_size=None if recipe.step_size is None else recipe.step_size / 255,
        seed=recipe.seed,
    )


def _regularizers(recipe: Recipe, method: Method, model: Classifier) -> list[Regularizer]:
    terms: list[Regularizer] = []
    if recipe.stable_node:
        resolve(model, recipe.stable_node)
        terms.append(FeatureStability(recipe.stable_node, recipe.stable_weight, recipe.stable_detach))
    logit_weight = method.default_logit_weight if recipe.logit_weight is None else recipe.logit_weight
    if logit_weight:
        terms.append(LogitStability(logit_weight))
    if recipe.co_node and recipe.co_top is not None:
        resolve(model, recipe.co_node)
        terms.append(
            ChannelDivergence(
                recipe.co_node,
                recipe.co_weight,
                recipe.co_top,
                recipe.co_by,
                recipe.co_select == "each-epoch",
                recipe.co_images,
                recipe.eps_train / 255,
                recipe.seed,
            )
        )
    if terms and not method.attacks:
        raise InputError(
            f"method {recipe.method} has no attack, so --stable-node, --logit-weight and --co-node can't be used"
        )
    return terms


def _loader(recipe: Recipe, training: Dataset, device: torch.device, processes: Processes) -> Loader:
    if processes.count > recipe.batch_size:
        raise InputError(f"--batch-size {recipe.batch_size}: too small to be shared by {processes.count} processes")
    return Loader(
        training,
        recipe.batch_size,
        device=device,
        shuffle=True,
        augment=recipe.augment != "none",
        flip=recipe.augment == "crop-flip",
        padding_mode=recipe.padding,
        seed=recipe.seed,
        channels_last=True,
        part=(processes.rank, processes.count),
    )
