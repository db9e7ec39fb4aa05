"""What the methods with several attack steps have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from coprobe.attacks import project
from coprobe.training.methods.base import Method, check_range
from coprobe.training.update import AdversarialInputs, UpdateState


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
        self, update: UpdateState, images: Tensor, loss: Callable[[Tensor], Tensor], *, training: bool = True
    ) -> AdversarialInputs:
        """Follow the sign of the gradient from x + δ0.

        Args:
            update: in whose passes the gradients are taken.
            images: x + δ0, like the batch's images.
            loss: logits to the scalar that the steps raise.
            training: False makes the passes in evaluation mode.
        """
        start = None
        for number in range(self.iterations):
            at = update.forward(images, training=training)
            start = start or at
            gradient = update.input_gradient(at, loss(at.logits), compared=number == 0)
            images = project(images + self.alpha * gradient.sign(), update.batch.images, self.epsilon)
        return AdversarialInputs(images, start)
