"""What a sign of catastrophic overfitting is, and the table of all that are known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from coprobe.checkpoint import Checkpoint
from coprobe.core.registry import Entry, Registry
from coprobe.metrics.setup import Setup
from coprobe.verdict.signs.neighbourhood import Neighbourhood


@dataclass(frozen=True)
class Quantity:
    """A number that a sign consists of.

    Attributes:
        name: in a word or two, unique in the sign.
        unit: of the number.
        healthy: what models without catastrophic overfitting show; empty where nothing is agreed.
        collapsed: what CO-affected models show.
        interval: how the 95 % interval around the mean over images is found: `wilson` (a share of images), `normal`
            (a mean of numbers that are bounded), `bootstrap` (a mean of numbers with a long tail), or `none`.
    """

    name: str
    unit: str
    healthy: str = ""
    collapsed: str = ""
    interval: str = "normal"


class Key(NamedTuple):
    """Which quantity, and where: at which node, class, budget, layer, group; empty where there is one place only."""

    quantity: str
    at: str = ""


#: By key a number per image, float64 (batch,); NaN where an image has none and is not counted.
Values = dict[Key, Tensor]


class Sign(ABC):
    """Something that differs between CO-affected and other models.

    Fields of a subclass are its settings.
    """

    name: ClassVar[str]
    #: In plain text, with the notation of `FORMULAS`.
    formula: ClassVar[str]
    quantities: ClassVar[tuple[Quantity, ...]]
    #: Raise it when the numbers change, so that results which are kept are measured anew.
    version: ClassVar[int] = 1
    #: Whether it compares with a second checkpoint.
    needs_reference: ClassVar[bool] = False
    #: Whether it looks at activations at the nodes.
    at_nodes: ClassVar[bool] = False


class ImageSign(Sign):
    """A sign that is a number per image: all of them share one pass over the images.

    Attributes:
        sees_attacks: whether it looks at the images of FGSM and PGD by which accuracy is measured (`ATTACKS`).
        sees_probing: whether it looks at the images of the attack behind T_act.
    """

    sees_attacks: ClassVar[bool] = False
    sees_probing: ClassVar[bool] = False

    @abstractmethod
    def values(self, here: Neighbourhood) -> Values:
        """The numbers of a batch; the model is in evaluation mode and frozen."""

    def of_all(self, values: Values) -> Values:
        """What is known only when all images, in their order, have been seen; by default nothing more."""
        return values


class ModelSign(Sign):
    """A sign that needs no images, or changed copies of the model, and so no part of the pass over the images."""

    def check(self, setup: Setup, reference: Checkpoint | None) -> None:
        """Raise `InputError`, before the work, if the reference has other layers."""

    @abstractmethod
    def rows(self, setup: Setup, reference: Checkpoint | None) -> pd.DataFrame:
        """Columns quantity, at, value, low, high, n.

        Args:
            setup: model, images and settings.
            reference: the second checkpoint, where one was given.
        """


#: Every sign by the name that people write. Facts: `number` in the table of signs, `cost` per image in passes forward
#: and backward (a forward pass alone counts a half), in words.
SIGNS: Registry[type[Sign]] = Registry("sign")

#: The notation of the formulas.
NOTATION = (
    "x is an image and y its label, ε the budget, ℓ(z) the cross-entropy at z, g(z) its gradient there. η is uniform "
    "in the ball of radius ε (for stage-alignment, linearity, abnormal-examples and boundary-distortion it is the "
    "random start of FGSM, so clamped to the range of pixels). δ_F is the perturbation of FGSM from that start, δ_0 "
    "that of FGSM from x itself, δ_P that of the probing attack. cos is the cosine between two vectors, z the logits."
)


def listed() -> list[Entry[type[Sign]]]:
    """Every sign, in the order of the table of signs."""
    return sorted(SIGNS.entries(), key=lambda entry: (entry.facts["number"], entry.name))


def share(values: Tensor, counted: Tensor | None = None) -> Tensor:
    """Booleans per image as float64, NaN where an image is not counted."""
    numbers = values.double()
    return numbers if counted is None else torch.where(counted, numbers, torch.nan)


def settings_of(sign: Sign) -> Mapping[str, Any]:
    """The settings of a sign and, if it is not the first, its version."""
    version = {"version": sign.version} if sign.version > 1 else {}
    return {**vars(sign), **version}
