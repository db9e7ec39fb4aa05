"""Fast adversarial training with adaptive step sizes (ATAS)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coprobe.attacks import project
from coprobe.data import Batch
from coprobe.training.methods.base import METHODS, Method, check_range
from coprobe.training.update import AdversarialInputs, UpdateState


@METHODS.register(
    "atas",
    summary="one step, the smaller the larger the image's gradient, from a perturbation that follows crop and flip",
    source="Huang et al. 2023",
    cost=1.0,
)
@dataclass(kw_only=True)
class ATAS(Method):
    """ATAS as in its public code.

    Every image has a perturbation P of the padded image, drawn from U(±ε), which is cropped and flipped as the image
    is. From x0 = x + P, clamped to [0, 1], with the gradient g of the cross-entropy there in evaluation mode:
    x + δ = clip_ε(x0 + step · sign g), clamped; δ goes back to where the crop was taken from. The step is ε for
    `warm_up` epochs; then v ← gradient_decay · v + (1 − gradient_decay) · ‖g‖₂² per image, from v = 0, and the step
    is full_step / (1 + √v / c), clipped to [smallest_step, largest_step]. g is that of the mean over the batch, so c
    suits batches of 128. Update: cross-entropy at x + δ.

    Args:
        warm_up: epochs with step ε (`step_size`, where given).
        c: √v at which the step is half of `full_step`.
        gradient_decay: of v.
        full_step: of an image without a gradient, in 255ths; like the two that follow it does not grow with ε.
        smallest_step: in 255ths.
        largest_step: in 255ths.
        reset_every: P is drawn anew before epochs reset_every, 2 · reset_every and so on (from 1), but not before the
            last epoch.

    Raises:
        InputError: an option out of range.
    """

    warm_up: int = 5
    c: float = 0.01
    gradient_decay: float = 0.5
    full_step: float = 16.0
    smallest_step: float = 4.0
    largest_step: float = 14.0
    reset_every: int = 10

    def __post_init__(self) -> None:
        check_range("warm_up", self.warm_up, 0)
        check_range("c", self.c, 0, above=True)
        check_range("gradient_decay", self.gradient_decay, 0, 1)
        for option in ("full_step", "smallest_step", "largest_step"):
            check_range(option, getattr(self, option), 0, 255)
        check_range("reset_every", self.reset_every, 1)

    def begin_epoch(self, epoch: int, generator: torch.Generator) -> None:
        """Draw the perturbations where they are due; v starts at 0 and is never reset."""
        data, device, ordinal = self.context.dataset, self.context.device, epoch + 1
        if epoch == 0:
            self.kept["gradient"] = self.remember(torch.zeros(len(data), device=device))
        if epoch == 0 or (ordinal % self.reset_every == 0 and ordinal != self.context.epochs):
            channels, *sides = data.image_shape
            # Channels innermost, as in the batches: a pixel of a crop is one piece of memory.
            shape = (len(data), *(side + 2 * self.context.padding for side in sides), channels)
            draw = torch.rand(shape, generator=generator, device=device)
            self.kept["perturbation"] = self.remember(self.epsilon * (2 * draw - 1))

    def perturb(self, update: UpdateState) -> AdversarialInputs:
        """One pass in evaluation mode at the stored perturbation, and a step from there, which is stored."""
        batch = update.batch
        stored, window = self.memory("perturbation").read(batch), _window(batch)
        images = (batch.images + stored[window].permute(0, 3, 1, 2)).clamp_(0, 1)
        start = update.forward(images, training=False)
        gradient = update.input_gradient(start, self.loss(start.logits, batch.labels))
        size = self._adapted(gradient, batch) if update.epoch >= self.warm_up else self.alpha
        images = project(images + size * gradient.sign(), batch.images, self.epsilon)
        stored[window] = (images - batch.images).permute(0, 2, 3, 1)
        self.memory("perturbation").write(batch, stored)
        return AdversarialInputs(images, start, gradient)

    def _adapted(self, gradient: Tensor, batch: Batch) -> Tensor:
        """Update v, and give the step sizes (fractions): (batch, 1, 1, 1)."""
        # Kept is √v times the batch size, the size of the gradient of the image's own loss. v itself is around c²,
        # 1e-4, and falls far below: half precision has no digits left there.
        scale = self.context.batch_size
        squared = (scale * gradient).square().sum((1, 2, 3))
        before = self.memory("gradient").read(batch)
        root = (self.gradient_decay * before.square() + (1 - self.gradient_decay) * squared).sqrt()
        self.memory("gradient").write(batch, root)
        size = self.full_step / (1 + root / (scale * self.c))
        return size.clamp(self.smallest_step, self.largest_step).view(-1, 1, 1, 1) / 255


def _window(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Where in the batch's padded images (batch, height, width) each pixel is from; broadcast to the batch's size.

    Without augmentation, each pixel is from its own place.
    """
    sides = (len(batch.images), *batch.images.shape[2:])
    image, row, column = (torch.arange(side, device=batch.images.device) for side in sides)
    image, row = image[:, None, None], row[:, None]
    if batch.offsets is not None and batch.mirrored is not None:
        top, left = batch.offsets[:, :, None, None].unbind(1)
        column = torch.where(batch.mirrored[:, None, None], len(column) - 1 - column, column)
        row, column = top + row, left + column
    return image, row, column
