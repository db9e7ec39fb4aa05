"""The set in which an attack may move an image: an L∞ or L2 ball around it, cut with [0, 1]."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from coprobe.core.randomness import ImageRandomness
from coprobe.errors import InputError, unknown

#: Norms by the names that people write, and as they are written for people.
NORMS = {"linf": "L∞", "l2": "L2"}


@dataclass(frozen=True)
class Ball:
    """All images within `epsilon` of an image, and in [0, 1].

    Args:
        epsilon: its radius. For L∞ a fraction in [0, 1] (16/255, not 16); for L2 the Euclidean length of the
            perturbation of images in [0, 1] (0.5 is what CIFAR-10 is usually attacked with).
        norm: `linf` or `l2`.

    Raises:
        InputError: an unknown norm, or a radius that can't be one.
    """

    epsilon: float
    norm: str = "linf"

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise unknown("norm", self.norm, NORMS)
        if self.norm == "linf" and not 0 <= self.epsilon <= 1:
            raise InputError(f"epsilon {self.epsilon * 255:g}/255: must lie between 0 and 255 (in 255ths)")
        if not 0 <= self.epsilon < math.inf:
            raise InputError(f"epsilon {self.epsilon:g}: must be a number of at least 0, in units of images in [0, 1]")

    def __str__(self) -> str:
        """As captions say it: `8/255`, or `0.5 (L2)`."""
        return length(self.epsilon, self.norm) + ("" if self.norm == "linf" else f" ({NORMS[self.norm]})")

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """`x_adv` moved into the ball around `x` and into [0, 1]; for L∞ the nearest point of both."""
        if self.norm == "linf":
            return project(x_adv, x, self.epsilon)
        away = x_adv - x
        lengths = norms(away)
        # Towards x, which lies in [0, 1]: what is cut off there makes no pixel's distance larger.
        return torch.where(lengths > self.epsilon, x + away * (self.epsilon / lengths), x_adv).clamp(0, 1)

    def random(self, x: Tensor, randomness: ImageRandomness, *place: int | Tensor) -> Tensor:
        """A uniform point of the ball around each image, not cut with [0, 1]; `place` numbers the draws."""
        if self.norm == "linf":
            noise = randomness.uniform(x.shape[1:], *place).to(x.dtype)
            return x + (2 * noise - 1) * self.epsilon
        direction = randomness.normal(x.shape[1:], *place, 0).to(x.dtype)
        share = randomness.uniform((1, 1, 1), *place, 1).to(x.dtype) ** (1 / max(1, math.prod(x.shape[1:])))
        return x + self.epsilon * share * steepest(direction, self.norm)

    def excess(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """By how much each image is further from `x` than the radius: (batch,), negative inside."""
        away = (x_adv - x).flatten(1)
        if not away.shape[1]:
            return away.new_full(x.shape[:1], -self.epsilon)
        return (away.abs().amax(1) if self.norm == "linf" else norms(x_adv - x).flatten()) - self.epsilon


def length(value: float, norm: str) -> str:
    """A distance as people read it: in 255ths for L∞, as a number in units of images in [0, 1] for L2."""
    return f"{value * 255:g}/255" if norm == "linf" else f"{value:g}"


def project(x_adv: Tensor, x: Tensor, epsilon: float) -> Tensor:
    """The nearest point to `x_adv` in the L∞ ball of radius `epsilon` around `x` and in [0, 1]."""
    return torch.clamp(x_adv, x - epsilon, x + epsilon).clamp_(0, 1)


def steepest(gradient: Tensor, norm: str) -> Tensor:
    """The direction of length 1 in which a loss with this gradient grows fastest: its sign, or itself over its length.

    Where the gradient is zero, so is the direction; where it is NaN, so is the direction, since a broken gradient
    must not look like robustness.
    """
    if norm == "linf":
        return torch.where(gradient.isnan(), gradient, gradient.sign())
    # By the largest entry first: squares of the small gradients of confident images would vanish.
    largest = gradient.flatten(1).abs().amax(1).view(-1, 1, 1, 1)
    scaled = torch.where(largest == 0, gradient, gradient / largest)
    lengths = norms(scaled)
    return torch.where(lengths == 0, scaled, scaled / lengths)


def norms(x: Tensor) -> Tensor:
    """The Euclidean length of each image, (batch, 1, 1, 1)."""
    return x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
