"""Sign 8: how large the input gradient is, and over how many pixels it is spread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from coprobe.verdict.signs.base import SIGNS, ImageSign, Key, Quantity, Values, share
from coprobe.verdict.signs.neighbourhood import Neighbourhood


@SIGNS.register(
    "gradient-size",
    summary="length of the gradient, its share of small elements, its participation ratio, and zero gradients",
    source="ZeroGrad (Golgooni et al. 2021); lp-FGSM 2025",
    number=8,
    cost="1 gradient",
)
@dataclass(frozen=True)
class GradientSize(ImageSign):
    """Gradients that are exactly zero have a length only; a share of them says that gradient attacks are blind.

    Args:
        small: elements below this part of the mean magnitude are small.
    """

    small: float = 0.1
    name: ClassVar[str] = "gradient-size"
    formula: ClassVar[str] = "‖g(x)‖₂; share of |gᵢ| < 0.1 mean |g|; (‖g‖₁ / ‖g‖₂)² / d; g = 0"
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity("length", "loss per pixel range", "stable over training", "collapses or explodes", "bootstrap"),
        Quantity("small", "share of elements", "stable over training", "rises"),
        Quantity("participation", "ratio", "stable over training", "falls"),
        Quantity("zero", "share of images", "0", "", "wilson"),
    )

    def values(self, here: Neighbourhood) -> Values:
        """From the gradient at the image."""
        magnitude = here.clean.gradient.abs()
        there = magnitude.any(1)
        length, total = here.clean.gradient.norm(dim=1), magnitude.sum(1)
        count = magnitude.shape[1]
        few = (magnitude < self.small * magnitude.mean(1, keepdim=True)).double().mean(1)
        return {
            Key("length"): length,
            Key("small"): share(few, there),
            Key("participation"): share((total / length).square() / count, there),
            Key("zero"): share(~there),
        }
