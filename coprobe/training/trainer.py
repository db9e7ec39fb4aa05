"""The one training loop: perturb, compare, update; measure; save."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from coprobe.checkpoint import Checkpoint
from coprobe.data import Batch, Dataset, Loader, hold_out, load
from coprobe.errors import InputError, RunError
from coprobe.files import check_writable_directory, write_json, write_table
from coprobe.models import Classifier, build, defaults
from coprobe.nodes import record, resolve
from coprobe.provenance import provenance
from coprobe.training.methods import METHODS, Method, make_method
from coprobe.training.monitor import Monitor
from coprobe.training.recipe import Recipe
from coprobe.training.regularizers import FeatureStability, LogitStability, Pass, Regularizer


@dataclass(frozen=True)
class Run:
    """A directory with `recipe.json`, `history.csv` (a row per epoch), `checkpoint.pt` (last) and `best.pt`."""

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


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    device: torch.device | str = "cpu",
    data: Dataset | None = None,
    overwrite: bool = False,
    on_batch: Callable[[int], None] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> Run:
    """Train a checkpoint.

    Args:
        recipe: every knob.
        out: the run directory to make.
        device: where to train.
        data: the training set; None loads `recipe.data`.
        overwrite: replace the files of a run that is there already.
        on_batch: called with the number of images after every update.
        on_epoch: called with the row of history.csv after every epoch.

    Raises:
        InputError: a recipe that can't be followed, a run that is there already, a directory that can't be
            written.
        RunError: the loss is not finite; the checkpoints of the epochs before are kept.
    """
    run = Run(check_writable_directory(out))
    if run.checkpoint.exists() and not overwrite:
        raise InputError(f"{out}: holds a run already; choose another --out, or pass --overwrite")
    device = torch.device(device)
    training, held_out = hold_out(data or load(recipe.data, "train"), recipe.limit_train, recipe.held_out)
    torch.manual_seed(recipe.seed)
    state = _initial(recipe, training, device)
    loop = TrainingLoop(recipe, state.model, *_objective(recipe, state.model), _loader(recipe, training, device))
    monitor = Monitor(held_out, recipe.evaluation_epsilon, device, recipe.seed)
    made = provenance(
        seed=recipe.seed,
        device=str(device),
        data_digest=training.digest(),
        images=len(training),
        held_out=len(held_out),
    )
    write_json(run.directory / "recipe.json", {**recipe.to_dict(), "provenance": made})
    rows: list[dict[str, Any]] = []
    for epoch in range(recipe.epochs):
        began = time.perf_counter()
        row = {"epoch": epoch + 1, "lr": loop.learning_rate(epoch), **loop.run_epoch(epoch, on_batch)}
        if not math.isfinite(row["train_loss"]):
            kept = "the checkpoints of the epochs before are kept" if rows else "no checkpoint was written"
            raise RunError(f"training diverged in epoch {epoch + 1} (its loss is not finite); {kept}; lower --lr")
        row["train_seconds"] = time.perf_counter() - began
        row |= monitor.measure(state.model)
        row["seconds"] = time.perf_counter() - began
        rows.append(row)
        _save(run, state, rows)
        if on_epoch:
            on_epoch(row)
        if recipe.stops_after(row["fgsm"], row["pgd10"]):
            break
    return run


def _initial(recipe: Recipe, training: Dataset, device: torch.device) -> Checkpoint:
    """The untrained model with its description."""
    arch_args = {**defaults(recipe.arch), "num_classes": training.num_classes, "in_channels": training.image_shape[0]}
    if recipe.width is not None:
        arch_args["width"] = recipe.width
    model = Classifier(build(recipe.arch, **arch_args)).to(device).to(memory_format=torch.channels_last)
    return Checkpoint(model, recipe.arch, arch_args, recipe.to_dict(), image_shape=training.image_shape)


def _objective(recipe: Recipe, model: nn.Module) -> tuple[Method, list[Regularizer]]:
    """The method and the regularizers; an unknown node is found here, before the work."""
    method = make_method(
        recipe.method,
        recipe.options,
        epsilon=recipe.eps_train / 255,
        step_size=None if recipe.step_size is None else recipe.step_size / 255,
        seed=recipe.seed,
    )
    terms: list[Regularizer] = []
    if recipe.stable_node:
        resolve(model, recipe.stable_node)
        terms.append(FeatureStability(recipe.stable_node, recipe.stable_weight))
    logit_weight = method.default_logit_weight if recipe.logit_weight is None else recipe.logit_weight
    if logit_weight:
        terms.append(LogitStability(logit_weight))
    if terms and METHODS.entry(recipe.method).facts["passes"] < 2:
        raise InputError(f"method {recipe.method} has no attack, so --stable-node and --logit-weight can't be used")
    return method, terms


def _save(run: Run, state: Checkpoint, rows: Sequence[dict[str, Any]]) -> None:
    """Write the last checkpoint, the best one if this is it (ties: the later epoch), and the history."""
    row = rows[-1]
    if row["pgd10"] >= max(earlier["pgd10"] for earlier in rows):
        replace(state, metrics={**row, "selected": "best held-out PGD-10"}).save(run.directory / "best.pt")
    replace(state, metrics={**row, "selected": "last epoch"}).save(run.checkpoint)
    write_table(pd.DataFrame(rows), run.directory / "history.csv")


def _loader(recipe: Recipe, training: Dataset, device: torch.device) -> Loader:
    return Loader(
        training,
        recipe.batch_size,
        device=device,
        shuffle=True,
        augment=recipe.augment != "none",
        flip=recipe.augment == "crop-flip",
        seed=recipe.seed,
        channels_last=True,
    )


def _nodes(regularizers: Sequence[Regularizer]) -> list[str]:
    return sorted({node for term in regularizers for node in term.nodes})


@dataclass
class TrainingLoop:
    """The state of a run between epochs."""

    recipe: Recipe
    model: nn.Module
    method: Method
    regularizers: Sequence[Regularizer]
    loader: Loader

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=self.recipe.lr,
            momentum=self.recipe.momentum,
            weight_decay=self.recipe.weight_decay,
        )

    def learning_rate(self, epoch: int, batch: int = 0) -> float:
        """The learning rate at a batch of an epoch, both from 0."""
        return self.recipe.learning_rate((epoch + batch / len(self.loader)) / self.recipe.epochs)

    def run_epoch(self, epoch: int, on_batch: Callable[[int], None] | None) -> dict[str, float]:
        """One pass over the training images; means of loss, accuracy and unweighted regularizers."""
        shape, device = self.loader.dataset.image_shape, self.loader.device
        self.model.train()
        self.loader.set_epoch(epoch)
        self.method.begin_epoch(epoch, len(self.loader.dataset), shape, device)
        totals: dict[str, Tensor] = {}
        for number, batch in enumerate(self.loader):
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate(epoch, number)
            measured = self.step(batch)
            for name, value in measured.items():
                totals[name] = totals.get(name, torch.zeros((), device=device)) + value * len(batch.images)
            if on_batch:
                on_batch(len(batch.images))
        seen = min(len(self.loader) * self.loader.batch_size, len(self.loader.dataset))
        return {name: float(total) / seen for name, total in totals.items()}

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One update; batch means of loss, accuracy on the perturbed images and regularizers, on the device."""
        with record(self.model, _nodes(self.regularizers)) as seen:
            perturbed = self.method.perturb(self.model, batch, keep_graph=bool(self.regularizers))
            start = dict(seen)
            logits = self.model(perturbed.images)
        loss = self.method.loss(logits, batch.labels)
        measured = {"train_accuracy": (logits.argmax(1) == batch.labels).float().mean()}
        for term in self.regularizers:
            if perturbed.start_logits is not None:
                value = term(Pass(logits, seen), Pass(perturbed.start_logits, start))
                loss = loss + term.weight * value
                measured[term.name] = value.detach()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return {"train_loss": loss.detach(), **measured}
