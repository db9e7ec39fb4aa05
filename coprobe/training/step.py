"""What is known while one update is made: shared by methods, regularizers and the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from coprobe.core.processes import ALONE, Processes
from coprobe.data import Batch, Dataset


@dataclass(frozen=True)
class Setting:
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
    """One forward pass: logits (batch, classes) and activations by node, with their graph."""

    logits: Tensor
    activations: Mapping[str, Tensor]


@dataclass(frozen=True)
class Perturbed:
    """What a method trains on.

    Attributes:
        images: x + δ, float (batch, channels, height, width).
        start: the attack's pass at its starting point x + δ0, with its graph if it was kept; None for a method
            without an attack.
        gradient: of the attack's loss at x + δ0, like the images; None where a method doesn't give it.
    """

    images: Tensor
    start: Pass | None
    gradient: Tensor | None = None


@dataclass(frozen=True)
class Step:
    """One update in the making.

    Attributes:
        model: images to logits, in training mode.
        batch: what it is made from.
        perturbed: what the method made of it.
        images: what the update's pass saw: the perturbed images, with the noise of Eqs. 11 and 12 where asked for.
        final: the update's pass at `images`.
        loss: the method's classification loss, logits and labels to a scalar.
        measured: column of history.csv to a detached scalar, the mean over the batch; anyone may add.
    """

    model: nn.Module
    batch: Batch
    perturbed: Perturbed
    images: Tensor
    final: Pass
    loss: Callable[[Tensor, Tensor], Tensor]
    measured: dict[str, Tensor] = field(default_factory=dict)

    @property
    def start(self) -> Pass:
        """The attack's pass at x + δ0; methods without one are refused with what needs it before the work begins."""
        assert self.perturbed.start is not None
        return self.perturbed.start


def uniform(batch: Batch, generator: torch.Generator) -> Tensor:
    """Numbers drawn uniformly from [−1, 1), like the images of the batch.

    They are drawn for the whole batch over all processes, so that they don't depend on how many there are.
    """
    shape = (len(batch.whole), *batch.images.shape[1:])
    return 2 * torch.rand(shape, generator=generator, device=batch.images.device)[batch.part] - 1
