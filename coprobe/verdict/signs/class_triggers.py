"""Sign 9: perturbations that belong to a class and pull every image there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from coprobe.attacks.ball import steepest
from coprobe.verdict.signs.base import SIGNS, ImageSign, Key, Quantity, Values, share
from coprobe.verdict.signs.neighbourhood import Neighbourhood


@SIGNS.register(
    "class-triggers",
    summary="images that are pulled to a class by its FGSM step at a grey image",
    source="LIET (2025, code); on the backdoor mechanism of CO, 2026 (abstract)",
    number=9,
    cost="a forward for each class",
)
@dataclass(frozen=True)
class ClassTriggers(ImageSign):
    """δ_c is ε · sign of the gradient of class c's log-probability at a grey image, and x + δ_c is clamped to [0, 1].

    Per image: the share of other classes than its own whose logit rises, and to which its prediction goes; and for
    each class, whether the prediction goes there, of the images of other classes.

    Args:
        grey: the value of all pixels of the grey image.
    """

    grey: float = 0.5
    name: ClassVar[str] = "class-triggers"
    formula: ClassVar[str] = "δ_c = ε sign ∇ log p_c(grey), c ≠ y: z_c(x + δ_c) > z_c(x); class(x + δ_c) = c"
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity("rises", "share of other classes", "", "near 1"),
        Quantity("taken", "share of other classes", "few", "more"),
        Quantity(
            "class", "share of images of other classes", "few at every class", "one or several dominate", "wilson"
        ),
    )

    def values(self, here: Neighbourhood) -> Values:
        """One pass with the perturbation of each class."""
        before, taken, rises = here.clean.logits, [], []
        for c, trigger in enumerate(self.triggers(here)):
            after = here.logits((here.x + trigger).clamp(0, 1))
            counted = here.y != c
            taken.append(share(after.argmax(1) == c, counted))
            rises.append(share(after[:, c] > before[:, c], counted))
        of_classes = {Key("class", str(c)): values for c, values in enumerate(taken)}
        return {
            Key("rises"): torch.stack(rises).nanmean(0),
            Key("taken"): torch.stack(taken).nanmean(0),
            **of_classes,
        }

    def triggers(self, here: Neighbourhood) -> Tensor:
        """δ_c of every class: classes × channels × height × width."""
        classes = here.clean.logits.shape[1]
        grey = torch.full((classes, *here.x.shape[1:]), self.grey, dtype=here.x.dtype, device=here.x.device)
        with torch.enable_grad():
            grey.requires_grad_()
            # one image for each class, so that one pass is enough
            (gradient,) = torch.autograd.grad(log_softmax(here.model(grey), 1).diagonal().sum(), grey)
        return here.ball.epsilon * steepest(gradient, here.ball.norm)
