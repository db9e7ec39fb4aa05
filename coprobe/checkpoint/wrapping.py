"""Networks that are there already, as checkpoints: a person's module in Python, or one that their factory made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from coprobe.checkpoint.checkpoint import Checkpoint
from coprobe.checkpoint.normalisation import Normalisation, without_file
from coprobe.core.engine import is_out_of_memory
from coprobe.core.switches import usual_torch
from coprobe.errors import InputError
from coprobe.models import Classifier
from coprobe.models.foreign import reason
from coprobe.models.shapes import Trial, trial
from coprobe.models.wrappers import unwrapped
from coprobe.nodes import guess_table, set_channel_axis

if TYPE_CHECKING:
    from typing_extensions import Self

_PREPROCESS = "give (mean, std) with one number per channel each, a module or a function"
Images = Callable[[torch.Tensor], torch.Tensor]


class Preprocessed(nn.Module):
    """A network behind what a person does to images first.

    Args:
        preprocess: takes images N×C×H×W in [0, 1].
        network: takes what that gives.
    """

    def __init__(self, preprocess: Images, network: nn.Module) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.network = network
        table = getattr(network, "node_table", {})
        self.node_table = {letter: f"network.{address}" for letter, address in table.items()}
        self.node_axis = getattr(network, "node_axis", None)

    def eval(self) -> Self:
        """Evaluation mode, by the network's own `eval`, which `nn.Module` would pass by."""
        super().eval()
        self.network.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images N×C×H×W in [0, 1] to logits N×classes; raises `InputError` where the person's own part fails."""
        try:
            ready = self.preprocess(images)
        except Exception as error:
            if is_out_of_memory(error):  # smaller batches may do
                raise
            shape = "×".join(map(str, images.shape))
            raise InputError(f"preprocess fails on images {shape} ({reason(error)}); mend it") from error
        if not isinstance(ready, torch.Tensor):
            raise InputError(f"preprocess gives a {type(ready).__name__} instead of a tensor of images; mend it")
        logits: torch.Tensor = self.network(ready)
        return logits


@usual_torch()
def wrap(
    model: nn.Module,
    preprocess: Sequence[Sequence[float]] | Images | None = None,
    *,
    image_shape: tuple[int, int, int] | None = None,
    num_classes: int | None = None,
    channel_axis: int | Mapping[str, int] | None = None,
) -> Checkpoint:
    """A live network as a checkpoint, for everything that takes one.

    The network is used as it is, not copied: its weights, modes and flags stay as they are, and what you change in it
    later is what is probed. A `Probe` on another device moves it there.

        >>> network = torchvision.models.resnet18(num_classes=10)
        >>> checkpoint = coprobe.wrap(network, preprocess=((0.49, 0.48, 0.45), (0.25, 0.24, 0.26)))
        >>> probe = coprobe.Probe(checkpoint, "cifar10", limit=1000)

    Args:
        model: takes images N×C×H×W, gives logits N×classes; torch.compile, DataParallel and
            DistributedDataParallel are taken off.
        preprocess: what the model expects to be done to images in [0, 1]: (mean, std), one number per channel; a
            module or function; None for nothing, or where the model does it itself.
        image_shape: (channels, height, width) of the images; None finds one that the model takes.
        num_classes: number of logits; None finds out.
        channel_axis: at which axis (batch, …) activations have their channels, at all nodes or by node; None finds out.

    Raises:
        InputError: no module, sharded or scripted, not float32, an image shape that it does not take, other logits
            than `num_classes`, a preprocess that is none or fails, an unknown node or axis.
    """
    network = unwrapped(model)
    kind = type(network).__name__
    normalisation = without_file(None, None, network)
    if isinstance(preprocess, tuple | list):
        try:
            mean, std = (tuple(map(float, numbers)) for numbers in preprocess)
        except (TypeError, ValueError):
            raise InputError(f"preprocess is no pair of two rows of numbers; {_PREPROCESS}") from None
        normalisation = Normalisation("preprocess", mean, std)
    elif callable(preprocess):
        network, normalisation = Preprocessed(preprocess, network), Normalisation("preprocess")
    elif preprocess is not None:
        raise InputError(f"preprocess is a {type(preprocess).__name__}; {_PREPROCESS}")
    size = trial(network, image_shape)
    if num_classes not in (None, size.num_classes):
        raise InputError(f"the network gives {size.num_classes} logits, not num_classes={num_classes}")
    checkpoint = live_checkpoint(network, normalisation, size, kind, {}, "a network in Python", "given in Python")
    set_channel_axis(checkpoint.model, channel_axis)
    return replace(checkpoint, tried_shape=image_shape is None)


def live_checkpoint(
    network: nn.Module,
    normalisation: Normalisation,
    size: Trial,
    arch: str,
    arch_args: dict[str, Any],
    layout: str,
    evidence: str,
) -> Checkpoint:
    """A network that is there already, as a checkpoint without a file; in whatever mode it is."""
    return Checkpoint(
        classifier(network, normalisation, size.image_shape),
        arch,
        {**arch_args, "num_classes": size.num_classes, "in_channels": size.image_shape[0]},
        image_shape=size.image_shape,
        tried_shape=True,
        container="none",
        layout=layout,
        evidence=evidence,
        normalised_by=normalisation.name,
    )


def classifier(
    network: nn.Module, normalisation: Normalisation, image_shape: tuple[int, int, int] | None
) -> Classifier:
    """The model that is probed; for networks that have no node table of their own, with a guess.

    Raises:
        InputError: mean or std are no numbers, or not one per channel.
    """
    own = getattr(network, "node_table", None)
    table = guess_table(network, image_shape) if image_shape and not own else None
    try:
        model = Classifier(network, normalisation.mean, normalisation.std, node_table=table)
    except (TypeError, ValueError) as error:  # what a file says may be anything
        raise InputError(str(error)) from None
    if image_shape and model.mean and len(model.mean) != image_shape[0]:
        raise InputError(
            f"mean and std have {len(model.mean)} channels where the images have {image_shape[0]}; "
            "give one number per channel"
        )
    model.training = network.training  # it is no more than the network, whatever others make of its mode
    return model
