"""What the methods with several attack steps have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from coprobe.attacks import project
from coprobe.data import Batch
from coprobe.training.methods.base import Method, check_range
from coprobe.training.step import Perturbed


@dataclass(kw_only=True)
class MultiStep(Method):
    """δ from several sign steps, each projected to the ball and to [0, 1]; every image makes all of them.

    Args:
        iterations: number of steps, each of 2/255 whatever ε, unless `step_size` says otherwise.

    Raises:
        InputError: fewer than one step.
    """

    iterations: int = 10

    def __post_init__(self) -> None:
        check_range("iterations", self.iterations, 1)

    @property
    def alpha(self) -> float:
        """The step size in force, a fraction."""
        return 2 / 255 if self.step_size is None else self.step_size

    def ascend(
        self,
        model: Callable[[Tensor], Tensor],
        batch: Batch,
        start: Tensor,
        loss: Callable[[Tensor], Tensor],
        *,
        keep_graph: bool,
    ) -> Perturbed:
        """Follow the sign of the gradient from x + δ0.

        Args:
            model: images to logits.
            batch: with x.
            start: x + δ0, like the images.
            loss: logits to the scalar that the steps raise.
            keep_graph: keep the graph of the first pass.
        """
        images = start
        for number in range(self.iterations):
            images = images.detach().requires_grad_()
            logits = model(images)
            if number == 0:
                observed = self.observe(logits)
            (gradient,) = torch.autograd.grad(loss(logits), images, retain_graph=keep_graph and number == 0)
            images = project(images.detach() + self.alpha * gradient.sign(), batch.images, self.epsilon)
        return Perturbed(images, observed)
