"""The model that is attacked: normalisation and a network, so that images and budgets stay in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from coprobe.errors import InputError
from coprobe.models.catalog import Network

if TYPE_CHECKING:
    from typing_extensions import Self

#: Above it, a mean is one of pixels from 0 to 255.
LARGEST_MEAN = 4.0


def usable(logits: torch.Tensor) -> torch.Tensor:
    """Of each image, whether its logits N×classes can be judged: bool (N,).

    −∞ is how networks rule out classes, so it is no fault unless all are ruled out; NaN and +∞ are.
    """
    return (logits < math.inf).all(1) & logits.isfinite().any(1)


class Classifier(nn.Module):
    """Images N×C×H×W in [0, 1] to logits N×classes of `network`, normalised per channel on the way.

    Args:
        network: takes the normalised images.
        mean: per channel, subtracted first; None stands for zeros.
        std: per channel, divided by; None stands for ones. Zeros and ones together skip the normalisation.
        node_table: nodes `A` … `E` to names of nodes, for a network that has no table of its own: a guess.
        channel_axes: at which axis (batch, …) activations have their channels, for all nodes or by name; None lets the
            network say, or a pass show it.

    Attributes:
        network: as given; its weights are the only entries of the state dict.
        mean: as floats; None when neither was given.
        std: as floats; None when neither was given.
        node_table: as given; {} if there is none.
        channel_axes: as given.
        precision: `32`, `tf32` (see `engine.frozen`), or `bf16` to run the network under autocast to bfloat16; logits
            come out as float32.

    Raises:
        InputError: the number of channels is wrong, a mean is not finite or one of pixels up to 255, or a std is not
            positive.
    """

    _mean: torch.Tensor
    _std: torch.Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        *,
        node_table: Mapping[str, str] | None = None,
        channel_axes: int | Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.node_table = dict(node_table or {})
        self.channel_axes = channel_axes
        self.precision = "32"
        self.mean: tuple[float, ...] | None = None
        self.std: tuple[float, ...] | None = None
        self._normalises = False
        if mean is None and std is None:
            return
        self.mean = tuple(map(float, mean if mean is not None else [0.0] * len(std or ())))
        self.std = tuple(map(float, std if std is not None else [1.0] * len(self.mean)))
        _check(self.mean, self.std, network.in_channels if isinstance(network, Network) else len(self.mean))
        self._normalises = any(self.mean) or any(s != 1 for s in self.std)
        self.register_buffer("_mean", torch.tensor(self.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(self.std).view(1, -1, 1, 1), persistent=False)

    def eval(self) -> Self:
        """Evaluation mode, by the network's own `eval`, which `nn.Module` would pass by."""
        super().eval()
        self.network.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images N×C×H×W in [0, 1] to logits N×classes."""
        images = self.normalised(images)
        if self.precision != "bf16":
            logits: torch.Tensor = self.network(images)
            return logits
        with torch.autocast(images.device.type, torch.bfloat16):
            return self.network(images).float()

    def normalised(self, images: torch.Tensor) -> torch.Tensor:
        """What the network gets: always a tensor of its own, since other people's networks may work in place on it."""
        return (images - self._mean) / self._std if self._normalises else images.clone()


def owning_input(model: nn.Module) -> Classifier:
    """`model`, in a `Classifier` unless it is one, so that nothing it does in place befalls the images it is given."""
    return model if isinstance(model, Classifier) else Classifier(model)


def _check(mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> None:
    if not len(mean) == len(std) == channels:
        raise InputError(
            f"mean has {len(mean)} and std {len(std)} channels where the images have {channels}; "
            "give one number per channel"
        )
    if not all(math.isfinite(m) for m in mean):
        raise InputError(f"mean {mean} is not finite; give numbers in the units of images in [0, 1]")
    if max(map(abs, mean)) > LARGEST_MEAN:
        shown = ", ".join(f"{m:g}" for m in mean)
        raise InputError(f"mean ({shown}) is not of images in [0, 1]; divide mean and std by 255")
    if not all(s > 0 and math.isfinite(s) for s in std):
        raise InputError(f"std {std} is not positive and finite; give 1 for a channel that is not to be scaled")
