"""What shape of image a network takes and how many logits it gives, learnt by showing it one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from coprobe.core.engine import frozen
from coprobe.errors import InputError
from coprobe.models.foreign import quiet, reason, some

#: Sides in pixels to try when a network does not say: CIFAR, MNIST, Tiny ImageNet, ImageNet, Inception.
_SIDES = (32, 28, 64, 224, 299)


@dataclass(frozen=True)
class Trial:
    """What a network takes and gives: (channels, height, width) of an image, and how many logits."""

    image_shape: tuple[int, int, int]
    num_classes: int


def trial(model: nn.Module, image_shape: tuple[int, int, int] | None = None, *, without_numbers: bool = False) -> Trial:
    """Show a black image to a network, to learn what it takes and gives; nothing of the network changes.

    Args:
        model: images N×C×H×W to logits N×classes.
        image_shape: (channels, height, width); None tries the size that the network names (torchvision's
            transformers, timm), then 32, 28, 64, 224 and 299 pixels.
        without_numbers: take a network on the meta device, too: shapes are known there.

    Raises:
        InputError: it works with no such image, or gives something else than one row of logits, or its weights are
            lazy, on the meta device, or not float32, as images are.
    """
    if not without_numbers:
        _check_weights(model)
    device = next((weight.device for weight in model.parameters()), None)
    first = ""
    refused: InputError | None = None
    tried = []
    for shape in [image_shape] if image_shape else _likely_shapes(model):
        tried.append("×".join(map(str, shape)))
        try:
            with frozen(model), torch.no_grad(), quiet():
                output = model(torch.zeros(1, *shape, device=device))
        except InputError as error:  # what stands before the network refuses them
            refused = refused or error
            continue
        except Exception as error:  # whatever a network says to images that it wasn't made for
            first = first or reason(error)
            continue
        if not isinstance(output, torch.Tensor):
            raise InputError(
                f"the network gives a {type(output).__name__} instead of a tensor of logits; "
                "give one that returns logits only"
            )
        if output.ndim == 2 and len(output) == 1 and output.shape[1] > 0 and output.is_floating_point():
            return Trial(shape, output.shape[1])
        first = first or f"{'×'.join(map(str, output.shape)) or 'a scalar'} of {output.dtype}, not 1×classes"
    if refused is not None and not first:
        raise refused
    raise InputError(
        f"the network gives no logits for one image of {some(tried)} ({first}); "
        "give one that turns images N×C×H×W into logits"
    )


def _check_weights(model: nn.Module) -> None:
    weights = (*model.parameters(), *model.buffers())
    if any(nn.parameter.is_lazy(weight) for weight in weights):
        raise InputError("the network has lazy weights without a shape; call it on an image once before giving it")
    if any(weight.is_meta for weight in weights):
        raise InputError("the network is on the meta device and holds no numbers; build it on the CPU")
    for weight in model.parameters():
        if weight.is_floating_point() and weight.dtype != torch.float32:
            found = str(weight.dtype).removeprefix("torch.")
            raise InputError(f"the network's weights are {found}; give it as float32, with model.float()")


def _likely_shapes(model: nn.Module) -> list[tuple[int, int, int]]:
    """Image shapes to try, the likeliest first, each once."""
    convolution = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    counts = [convolution.in_channels] if convolution else [3, 1]
    own: list[tuple[int, int, int]] = []
    for module in model.modules():
        about = getattr(module, "pretrained_cfg", None)
        size = about.get("input_size") if isinstance(about, Mapping) else None
        side = getattr(module, "image_size", None)
        if size is not None:
            own += [(channels, size[1], size[2]) for channels in counts]
        elif isinstance(side, int):
            own += [(channels, side, side) for channels in counts]
    guesses = [(channels, side, side) for channels in counts for side in _SIDES]
    return list(dict.fromkeys(own + guesses))
