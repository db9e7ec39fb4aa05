"""Training and evaluation written as public code is: what `benchmarks.train` and `benchmarks.attack` compare with.

FGSM-RS and FGSM-MEP: float32 and NCHW throughout; the data is float32 and padded; each image is cropped and flipped by
itself in Python; the attack's backward pass goes to the weights as well; loss and accuracy are fetched from the device
at every step. PGD until misclassified: the whole batch takes part in every step, also images that are done.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coprobe.data import Dataset

PADDING = 4


@dataclass
class NaiveLoop:
    """One of the two methods; `updates` makes one update after another, for ever.

    Args:
        mep: FGSM-MEP with its logit term, otherwise FGSM-RS.
        model: images to logits, in training mode, on the device.
        dataset: the images.
        batch_size: images per update; a smaller last batch is left out.
        epsilon: radius of the perturbation, a fraction.
        lr: the learning rate.
        device: where the model is.
    """

    mep: bool
    model: nn.Module
    dataset: Dataset
    batch_size: int
    epsilon: float
    lr: float
    device: torch.device
    loss_sum: float = 0.0
    correct: int = 0
    draw: random.Random = field(default_factory=lambda: random.Random(0))

    def __post_init__(self) -> None:
        images = self.dataset.images.to(self.device).float() / 255
        self.padded = F.pad(images, (PADDING,) * 4)
        self.labels = self.dataset.labels.to(self.device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=self.lr, momentum=0.9, weight_decay=5e-4)
        if self.mep:
            self.prior = self.epsilon * torch.empty_like(images).uniform_(-1, 1).sign()
            self.momentum = torch.zeros_like(images)

    def updates(self) -> Iterator[None]:
        """Yields after every update."""
        while True:
            for chosen in torch.randperm(len(self.dataset)).split(self.batch_size):
                if len(chosen) == self.batch_size:
                    self.update(chosen.to(self.device))
                    yield

    def update(self, chosen: Tensor) -> None:
        """One update on these images, int64 (batch,)."""
        x = torch.stack([self.augment(self.padded[i]) for i in chosen.tolist()])
        y = self.labels[chosen]
        delta = self.prior[chosen] if self.mep else _valid(torch.empty_like(x).uniform_(-self.epsilon, self.epsilon), x)
        delta.requires_grad_()
        start_logits = self.model(x + delta)
        self.loss(start_logits, y).backward(retain_graph=self.mep)
        assert delta.grad is not None
        gradient, delta = delta.grad, delta.detach()
        if self.mep:
            momentum = gradient / gradient.abs().sum() + 0.3 * self.momentum[chosen]
            self.momentum[chosen] = momentum
            self.prior[chosen] = self.ascend(delta, momentum, x)
        logits = self.model(x + self.ascend(delta, gradient, x))
        loss = self.loss(logits, y)
        if self.mep:
            loss = loss + 10 * F.mse_loss(logits, start_logits)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.loss_sum += loss.item() * len(y)
        self.correct += int((logits.argmax(1) == y).sum().item())

    def augment(self, image: Tensor) -> Tensor:
        """A random crop of one padded image, flipped half of the time."""
        top, left = self.draw.randint(0, 2 * PADDING), self.draw.randint(0, 2 * PADDING)
        _, height, width = image.shape
        crop = image[:, top : top + height - 2 * PADDING, left : left + width - 2 * PADDING]
        return crop.flip(2) if self.draw.random() < 0.5 else crop

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy (scalar); of FGSM-MEP with 0.6 on the true class, the rest spread over the others."""
        if not self.mep:
            return F.cross_entropy(logits, labels)
        classes = logits.shape[1]
        target = torch.full_like(logits, 0.4 / (classes - 1)).scatter_(1, labels[:, None], 0.6)
        return -(target * F.log_softmax(logits, 1)).sum(1).mean()

    def ascend(self, delta: Tensor, direction: Tensor, x: Tensor) -> Tensor:
        """The sign step from δ, within the ball and the pixel range."""
        step = self.epsilon if self.mep else 1.25 * self.epsilon
        return _valid((delta + step * direction.sign()).clamp(-self.epsilon, self.epsilon), x)


def pgd_until_misclassified(
    model: nn.Module, x: Tensor, y: Tensor, start: Tensor, epsilon: float, step: float, iterations: int
) -> Tensor:
    """Adversarial images from the given start: the loop of the evaluations of fast adversarial training.

    At every step the whole batch goes forward and backward, to the weights as well if they take gradients; images that
    are classified correctly move, and only when there are none left, the loop ends.
    """
    x_adv = start.clone()
    for _ in range(iterations):
        x_adv.requires_grad_()
        logits = model(x_adv)
        moving = (logits.argmax(1) == y).nonzero()[:, 0]
        if len(moving) == 0:
            break
        # The sum, since a mean rounds gradients in another way in a last, smaller batch.
        F.cross_entropy(logits, y, reduction="sum").backward()
        assert x_adv.grad is not None
        sign, x_adv = x_adv.grad[moving].sign(), x_adv.detach()
        low, high = x[moving] - epsilon, x[moving] + epsilon
        x_adv[moving] = (x_adv[moving] + step * sign).clamp(low, high).clamp(0, 1)
    return x_adv.detach()


def _valid(delta: Tensor, x: Tensor) -> Tensor:
    return torch.max(torch.min(delta, 1 - x), -x)
