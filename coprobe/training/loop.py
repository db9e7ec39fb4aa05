"""The one training loop: perturb, compare, update."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
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
from coprobe.training.update import AdversarialInputs, Pass, TrainingContext, UpdateState


class TrainingLoop:
    """A run as it stands between two updates; `state` and `load` carry it over an interruption.

    Args:
        recipe: the knobs.
        model: images to logits, on the device.
        method: makes the perturbation and the loss.
        regularizers: added to the method's objective.
        loader: the batches.
        context: what stays the same.
        compiled: run the passes through torch.compile; in one process and without `ChannelDivergence` only.

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
        context: TrainingContext,
        *,
        compiled: bool = False,
    ) -> None:
        self.recipe = recipe
        self.model = model
        self.method = method
        self.regularizers = regularizers
        self.loader = loader
        self.context = context
        self.nodes = sorted({node for term in regularizers for node in term.nodes})
        self.keeps_graph = bool(regularizers) or method.keeps_graph
        self.compiled = compiled
        # The update's pass goes through `synced`, whose backward pass averages the gradients of all processes; every
        # other pass through `local`.
        self.local = self._compile() if compiled else model
        self.synced = self.local if context.processes.world_size == 1 else context.processes.data_parallel(model)
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        self.evaluated = copy.deepcopy(model) if recipe.average else model
        self.epoch = self.number = 0
        self.seconds = 0.0
        self._totals: dict[str, Tensor] = {}
        method.prepare(context)

    def _compile(self) -> nn.Module:
        import torch._functorch.config

        torch._functorch.config.donated_buffer = False  # a kept graph goes backward twice
        # CUDA graphs: at these sizes, launching the kernels takes a GPU longer than running them.
        mode = "reduce-overhead" if self.context.device.type == "cuda" else None
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
        """Make the remaining updates of this epoch; yields after each, when the state may be saved."""
        if self.number == 0:
            self.method.begin_epoch(self.epoch, self._generator("memory", self.epoch))
            for term in self.regularizers:
                term.begin_epoch(self.epoch, self.model, self.context)
        self.model.train()
        replays = self.method.updates_per_batch
        first, replayed = divmod(self.number, replays)
        began = time.perf_counter()
        with record(self.model, self.nodes) as recorded:
            for batch in self.loader.batches(self.epoch, first):
                for _ in range(replayed, replays):
                    self.update(batch, recorded)
                    self.number += 1
                    self.seconds += time.perf_counter() - began
                    yield batch
                    began = time.perf_counter()
                replayed = 0
        if self.context.device.type == "cuda":
            torch.cuda.synchronize(self.context.device)  # for the clock
        self.seconds += time.perf_counter() - began

    def end_epoch(self) -> dict[str, float]:
        """Go on to the next epoch; returns this one's means over all images and processes, by column of history.csv."""
        images = self.loader.images * self.method.updates_per_batch
        names = sorted(self._totals)
        means = self.context.processes.sum(torch.stack([self._totals[name] for name in names])) / images
        row = dict(zip(names, means.tolist(), strict=True))
        row |= {"train_seconds": self.seconds, "images_per_second": images / self.seconds}
        self.epoch, self.number, self.seconds, self._totals = self.epoch + 1, 0, 0.0, {}
        return row

    def is_finite(self) -> bool:
        """Whether the losses of this epoch and the weights are finite; waits for the device."""
        tensors = [*self._totals.values(), *self.model.state_dict().values()]
        checks = torch.stack([tensor.isfinite().all() for tensor in tensors])
        return not self.context.processes.any(not checks.all(), self.context.device)

    def update(self, batch: Batch, recorded: Mapping[str, Tensor]) -> None:
        """Update the weights; `recorded` receives the activations of every pass."""
        if self.compiled:
            torch.compiler.cudagraph_mark_step_begin()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        update = self.state_of(batch, self.number, recorded)
        inputs, final, loss = self.objective(update)
        self.optimizer.zero_grad(set_to_none=True)
        # The processes' gradients are averaged as if their parts of the batch were equally large.
        (loss * (batch.fraction * self.context.processes.world_size)).backward()
        self.method.after_backward(update, inputs)
        self.optimizer.step()
        if self.evaluated is not self.model:
            self._move_average()
        accuracy = (final.logits.detach().argmax(1) == batch.labels).float().mean()
        measured = {"train_loss": loss.detach(), "train_accuracy": accuracy, **update.measured}
        for name, value in measured.items():
            self._totals[name] = self._totals.get(name, torch.zeros_like(value)) + value * len(batch.labels)

    def state_of(self, batch: Batch, number: int, recorded: Mapping[str, Tensor]) -> UpdateState:
        """The update of this epoch with that number, before anything is computed."""
        generator = self._generator("perturbation", self.epoch, number)
        return UpdateState(
            self.local, batch, self.epoch, number, generator, self.method.loss, self.keeps_graph, recorded
        )

    def objective(self, update: UpdateState) -> tuple[AdversarialInputs, Pass, Tensor]:
        """What the method trains on, the update's pass, and its whole loss (scalar)."""
        with self._images_only():
            inputs = self.method.perturb(update)
        *others, images = self._noisy(inputs.images, update.batch)
        losses = [self.method.loss(self.local(other), update.batch.labels) for other in others]
        final = Pass(images, self.synced(images), dict(update.recorded))
        losses.append(self.method.objective(update, inputs, final))
        loss = torch.stack(losses).mean()
        for term in self.regularizers:
            assert inputs.start is not None  # `assemble` refuses terms for a method without an attack
            loss = loss + term(update, inputs.start, final)
        return inputs, final, loss

    def _noisy(self, images: Tensor, batch: Batch) -> list[Tensor]:
        """The inputs of the update: x + δ, or its noisy versions."""
        if self.recipe.noise == "none":
            return [images]
        generator = self._generator("noise", self.epoch, self.number)
        return noisy_versions(self.recipe.noise, images, batch, self.method.epsilon, generator)

    def _generator(self, purpose: str, *place: int) -> torch.Generator:
        return generator_for(self.recipe.seed, purpose, *place, device=self.context.device)

    @contextmanager
    def _images_only(self) -> Iterator[None]:
        """Inside the block, compiled passes don't compute gradients of the weights, which they would do unasked."""
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
        # torch's AveragedModel would wait for the device in every update (`n_averaged`), and average counters too.
        blend = get_ema_multi_avg_fn(self.recipe.average)
        pairs = zip(self.evaluated.state_dict().values(), self.model.state_dict().values(), strict=True)
        averages, values = [], []
        for average, value in pairs:
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)  # the number of batches seen
        blend(averages, values, 0)

    def state(self) -> dict[str, Any]:
        """Everything that the next update depends on, as plain values and tensors."""
        return {
            "epoch": self.epoch,
            "number": self.number,
            "seconds": self.seconds,
            "totals": {name: self.context.processes.sum(value.clone()) for name, value in self._totals.items()},
            "model": self.model.state_dict(),
            "buffers": self.context.processes.gather({k: v.cpu() for k, v in self.model.named_buffers()}),
            "average": self.evaluated.state_dict() if self.evaluated is not self.model else None,
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state(),
            "regularizers": [term.state() for term in self.regularizers],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.epoch, self.number, self.seconds = state["epoch"], state["number"], state["seconds"]
        # These are the totals of all processes, so only one of them goes on with them.
        leads = self.context.processes.leads
        self._totals = {name: value.to(self.context.device) * leads for name, value in state["totals"].items()}
        self.model.load_state_dict(state["model"])
        if len(state["buffers"]) == self.context.processes.world_size:
            self.model.load_state_dict(state["buffers"][self.context.processes.rank], strict=False)
        if state["average"] is not None:
            self.evaluated.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.method.load(state["method"])
        for term, own in zip(self.regularizers, state["regularizers"], strict=True):
            term.load(own)
