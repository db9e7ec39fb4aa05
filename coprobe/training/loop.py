"""The one training loop: perturb, compare, update."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from coprobe.core.randomness import generator_for
from coprobe.data import Batch, Loader
from coprobe.nodes import record
from coprobe.training.methods import Method
from coprobe.training.recipe import Recipe
from coprobe.training.regularizers import Regularizer, noisy_versions
from coprobe.training.step import Pass, Setting, Step


class TrainingLoop:
    """A run between two updates; `state` and `load` carry it over an interruption.

    Args:
        recipe: the knobs.
        model: images to logits, on the device.
        method: makes the perturbation.
        regularizers: added to the method's objective.
        loader: the batches.
        setting: what stays the same.
        compiled: run the passes through torch.compile; alone only, and without regularizers that mask.

    Attributes:
        epoch, number: of the next update, from 0.
        seconds: spent on the updates of this epoch.
        evaluated: the model to evaluate and to save: the moving average where there is one.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        method: Method,
        regularizers: Sequence[Regularizer],
        loader: Loader,
        setting: Setting,
        *,
        compiled: bool = False,
    ) -> None:
        self.recipe = recipe
        self.model = model
        self.method = method
        self.regularizers = regularizers
        self.loader = loader
        self.setting = setting
        self.nodes = sorted({node for term in regularizers for node in term.nodes})
        self.keeps_graph = bool(regularizers) or method.keeps_graph
        self.compiled = compiled
        # Passes whose gradient goes to the images alone use `local`; the update's pass uses `synced`, whose backward
        # pass averages the gradients of all processes.
        self.local = self._compile() if compiled else model
        self.synced = self.local if setting.processes.world_size == 1 else setting.processes.data_parallel(model)
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        self.evaluated = copy.deepcopy(model) if recipe.average else model
        self.epoch = self.number = 0
        self.seconds = 0.0
        self._totals: dict[str, Tensor] = {}
        method.prepare(setting)

    def _compile(self) -> nn.Module:
        torch._functorch.config.donated_buffer = False  # a kept graph goes backward twice
        # With CUDA graphs on a GPU, where to launch the kernels takes longer than to run them at these sizes.
        mode = "reduce-overhead" if self.setting.device.type == "cuda" else None
        return cast(nn.Module, torch.compile(self.model, mode=mode, dynamic=False))

    @property
    def updates(self) -> int:
        """Updates per epoch."""
        return len(self.loader) * self.method.updates_per_batch

    @property
    def learning_rate(self) -> float:
        """Of the next update."""
        return self.recipe.learning_rate((self.epoch + self.number / self.updates) / self.recipe.epochs)

    def run_epoch(self) -> Iterator[Batch]:
        """Make the updates that are left of this epoch; yields after each, when the state may be saved."""
        if self.number == 0:
            self.method.begin_epoch(self.epoch)
            for term in self.regularizers:
                term.begin_epoch(self.epoch, self.model, self.setting)
        self.model.train()
        replays = self.method.updates_per_batch
        first, replayed = divmod(self.number, replays)
        began = time.perf_counter()
        with record(self.model, self.nodes) as seen:
            for batch in self.loader.batches(self.epoch, first):
                for _ in range(replayed, replays):
                    self._update(batch, seen)
                    self.number += 1
                    self.seconds += time.perf_counter() - began
                    yield batch
                    began = time.perf_counter()
                replayed = 0
        if self.setting.device.type == "cuda":
            torch.cuda.synchronize(self.setting.device)  # for the clock
        self.seconds += time.perf_counter() - began

    def end_epoch(self) -> dict[str, float]:
        """The means of this epoch by column of history.csv, over all images and processes; on to the next one."""
        images = self.loader.images * self.method.updates_per_batch
        names = sorted(self._totals)
        means = self.setting.processes.sum(torch.stack([self._totals[name] for name in names])) / images
        row = dict(zip(names, means.tolist(), strict=True))
        row |= {"train_seconds": self.seconds, "images_per_second": images / self.seconds}
        self.epoch, self.number, self.seconds, self._totals = self.epoch + 1, 0, 0.0, {}
        return row

    def is_finite(self) -> bool:
        """Whether the losses of this epoch and the weights are finite; waits for the device."""
        tensors = [*self._totals.values(), *self.model.state_dict().values()]
        checks = torch.stack([tensor.isfinite().all() for tensor in tensors])
        return not self.setting.processes.any(not checks.all(), self.setting.device)

    def _update(self, batch: Batch, seen: dict[str, Tensor]) -> None:
        if self.compiled:
            torch.compiler.cudagraph_mark_step_begin()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        step, loss = self.objective(batch, seen)
        self.optimizer.zero_grad(set_to_none=True)
        # The processes' gradients are averaged as if their parts of the batch were equally large.
        (loss * (batch.fraction * self.setting.processes.world_size)).backward()
        self.method.after_backward(step)
        self.optimizer.step()
        if self.evaluated is not self.model:
            self._move_average()
        measured = {"train_loss": loss.detach(), "train_accuracy": _accuracy(step), **step.measured}
        for name, value in measured.items():
            self._totals[name] = self._totals.get(name, torch.zeros_like(value)) + value * len(batch.labels)

    def objective(self, batch: Batch, seen: dict[str, Tensor]) -> tuple[Step, Tensor]:
        """The update in the making and its whole loss (scalar); `seen` receives the recorded activations."""
        self.method.begin_step(self.epoch, self.number)
        self.method.observe = lambda logits: Pass(logits, dict(seen))
        with self._images_only():
            perturbed = self.method.perturb(self.local, batch, keep_graph=self.keeps_graph)
        *others, images = self._seen(perturbed.images, batch)
        losses = [self.method.loss(self.local(other), batch.labels) for other in others]
        final = Pass(self.synced(images), dict(seen))
        step = Step(self.local, batch, perturbed, images, final, self.method.loss)
        losses.append(self.method.objective(step))
        loss = torch.stack(losses).mean()
        for term in self.regularizers:
            loss = loss + term(step)
        return step, loss

    def _seen(self, images: Tensor, batch: Batch) -> list[Tensor]:
        """What the update sees: x + δ, or its noisy versions."""
        if self.recipe.noise == "none":
            return [images]
        place = (self.epoch, self.number)
        generator = generator_for(self.recipe.seed, "noise", *place, device=self.setting.device)
        return noisy_versions(self.recipe.noise, images, batch, self.method.epsilon, generator)

    @contextmanager
    def _images_only(self) -> Iterator[None]:
        """Compiled passes compute the weights' gradients too, wanted or not, unless the weights need none."""
        frozen = list(self.model.parameters()) if self.compiled and not self.keeps_graph else []
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)

    @torch.no_grad()
    def _move_average(self) -> None:
        blend = get_ema_multi_avg_fn(self.recipe.average)
        pairs = zip(self.evaluated.state_dict().values(), self.model.state_dict().values(), strict=True)
        averages, values = [], []
        for average, value in pairs:
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)  # how many batches there were
        blend(averages, values, 0)

    def state(self) -> dict[str, Any]:
        """Everything that the next update depends on, as plain values and tensors."""
        return {
            "epoch": self.epoch,
            "number": self.number,
            "seconds": self.seconds,
            "totals": {name: self.setting.processes.sum(value.clone()) for name, value in self._totals.items()},
            "model": self.model.state_dict(),
            "buffers": self.setting.processes.gather({k: v.cpu() for k, v in self.model.named_buffers()}),
            "average": self.evaluated.state_dict() if self.evaluated is not self.model else None,
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state(),
            "regularizers": [term.state() for term in self.regularizers],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.epoch, self.number, self.seconds = state["epoch"], state["number"], state["seconds"]
        # Totals are those of all processes; one of them goes on with them.
        leads = self.setting.processes.leads
        self._totals = {name: value.to(self.setting.device) * leads for name, value in state["totals"].items()}
        self.model.load_state_dict(state["model"])
        if len(state["buffers"]) == self.setting.processes.world_size:
            self.model.load_state_dict(state["buffers"][self.setting.processes.rank], strict=False)
        if state["average"] is not None:
            self.evaluated.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.method.load(state["method"])
        for term, own in zip(self.regularizers, state["regularizers"], strict=True):
            term.load(own)


def _accuracy(step: Step) -> Tensor:
    return (step.final.logits.detach().argmax(1) == step.batch.labels).float().mean()
