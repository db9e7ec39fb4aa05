"""One update of the weights: the passes that it makes, and what is known while it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from coprobe.core.processes import ALONE, Processes
from coprobe.data import Batch, Dataset


@dataclass(frozen=True)
class TrainingContext:
    """What stays the same during a run.

    Attributes:
        dataset: the training images, without augmentation.
        device: where the model is.
        batch_size: images per update, over all processes.
        padding: pixels around an image from which crops are drawn; 0 without crops.
        epochs: of the run.
        phases: first epoch and end of each stretch of constant learning rate (the whole run if there is but one).
        processes: those that train together.
        memory_dtype: in which memories of the images are held.
    """

    dataset: Dataset
    device: torch.device
    batch_size: int
    padding: int
    epochs: int
    phases: tuple[tuple[int, int], ...]
    processes: Processes = ALONE
    memory_dtype: torch.dtype = torch.float16


@dataclass(frozen=True)
class Pass:
    """One forward pass.

    Attributes:
        images: its input, float (batch, channels, height, width).
        logits: (batch, classes), with their graph.
        activations: by node, of the nodes that regularizers compare, with their graph.
    """

    images: Tensor
    logits: Tensor
    activations: Mapping[str, Tensor]


@dataclass(frozen=True)
class AdversarialInputs:
    """What a method trains on.

    Attributes:
        images: x + δ, float (batch, channels, height, width).
        start: the attack's pass at its starting point x + δ0, with its graph if it was kept; None for a method
            without an attack.
        gradient: of the attack's loss at x + δ0, like the images; None where a method doesn't give it.
    """

    images: Tensor
    start: Pass | None = None
    gradient: Tensor | None = None


@dataclass(frozen=True)
class UpdateState:
    """Where in the run an update is, and the passes that it can make.

    Attributes:
        model: images to logits, in training mode.
        batch: what the update is made from.
        epoch: from 0.
        number: of the update in its epoch, from 0.
        generator: of the method's random numbers, on the device; every update has its own.
        loss: the method's classification loss, logits and labels to a scalar.
        keep_graph: whether anything goes backward through the pass at x + δ0 again.
        recorded: activations of the latest pass by node; hooks on the model fill it.
        measured: column of history.csv to a detached scalar, the mean over the batch; anyone may add.
    """

    model: nn.Module
    batch: Batch
    epoch: int
    number: int
    generator: torch.Generator
    loss: Callable[[Tensor, Tensor], Tensor]
    keep_graph: bool = False
    recorded: Mapping[str, Tensor] = field(default_factory=dict)
    measured: dict[str, Tensor] = field(default_factory=dict)

    def forward(self, images: Tensor, *, training: bool = True) -> Pass:
        """One pass whose gradient `input_gradient` can give.

        Args:
            images: float (batch, channels, height, width); its own graph, if any, is left aside.
            training: False makes the pass in evaluation mode; the mode of every module is as before afterwards.
        """
        images = images.detach().requires_grad_()
        if training:
            return Pass(images, self.model(images), dict(self.recorded))
        with _evaluating(self.model):
            # In evaluation mode batch norm reads the running statistics in the backward pass as well. By then the
            # update's pass has changed them, unnoticed by autograd: a graph that is kept needs a copy of its own.
            buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers() if self.keep_graph}
            logits = functional_call(self.model, buffers, (images,)) if buffers else self.model(images)
            return Pass(images, logits, dict(self.recorded))

    def input_gradient(self, at: Pass, loss: Tensor, *, compared: bool = True, create_graph: bool = False) -> Tensor:
        """The gradient with respect to the images of a pass, like the images.

        Args:
            at: the pass, by `forward`.
            loss: scalar, a mean over this process's part of the batch. The gradient is that of the mean over the whole.
            compared: whether this is the pass at x + δ0 that the update may compare with; only its graph is kept.
            create_graph: make the gradient differentiable.
        """
        kept = create_graph or (compared and self.keep_graph)
        loss = loss * self.batch.fraction
        (gradient,) = torch.autograd.grad(loss, at.images, retain_graph=kept, create_graph=create_graph)
        return gradient


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; unlike in `coprobe.core.engine.frozen`, parameters can have gradients."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def uniform(batch: Batch, generator: torch.Generator) -> Tensor:
    """Numbers drawn uniformly from [−1, 1), like the images of the batch.

    They are drawn for the whole batch over all processes, so that they don't depend on how many there are.
    """
    shape = (len(batch.whole), *batch.images.shape[1:])
    return 2 * torch.rand(shape, generator=generator, device=batch.images.device)[batch.part] - 1
