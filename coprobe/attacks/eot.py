"""An attack that anticipates noise on the input: PGD on the expectation over that noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from coprobe.attacks.base import ATTACKS
from coprobe.attacks.gradient import PGD
from coprobe.core.randomness import ImageRandomness
from coprobe.errors import InputError


@ATTACKS.register(
    "pgd-eot",
    summary="PGD whose gradient is the mean over 10 draws of uniform noise of 16/255 on the input",
    source="Athalye et al. 2018 (expectation over transformation)",
    cost=100,
)
@dataclass(frozen=True, kw_only=True)
class EOTPGD(PGD):
    """PGD against a model whose input gets uniform noise: it climbs the cross-entropy expected over the noise.

    Every image takes every step, since under noise no single prediction says that it is done. The noise is
    not clamped to [0, 1], as in an evaluation under noise. Of several restarts the one with the largest
    cross-entropy without noise is kept.

    Args:
        samples: draws per step over which the gradient is averaged.
        noise: it is uniform on [−noise, noise] per pixel and channel, a fraction.
    """

    name: ClassVar[str] = "pgd-eot"
    title: ClassVar[str] = "EOT-PGD"
    in_255ths: ClassVar[tuple[str, ...]] = ("noise",)

    rule: str = "always"
    samples: int = 10
    noise: float = 16 / 255

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule != "always":
            raise InputError(f"{self.name}: rule '{self.rule}' means nothing under noise; leave it out")
        if self.samples < 1:
            raise InputError(f"{self.name}: samples {self.samples}: must be at least 1")
        if not 0 < self.noise <= 1:
            raise InputError(f"{self.name}: noise {self.noise * 255:g}/255: must be above 0 and at most 255/255")

    def _gradient(
        self, model: nn.Module, point: Tensor, y: Tensor, randomness: ImageRandomness, place: tuple[int | Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """The mean over the draws, of gradients and of logits, one draw after another to save memory."""
        drawn = []
        for sample in range(self.samples):
            draw = randomness.uniform(point.shape[1:], *place, sample).to(point.dtype)
            noisy = point + (2 * draw - 1) * self.noise
            drawn.append(super()._gradient(model, noisy, y, randomness, place))
        gradients, logits = zip(*drawn, strict=True)
        return torch.stack(gradients).mean(0), torch.stack(logits).mean(0)
