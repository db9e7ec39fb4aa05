"""What shape of image a network takes and how many logits it gives, learnt by showing it one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import nn

from coprobe.core.engine import frozen
from coprobe.errors import InputError
from coprobe.models.foreign import quiet, reason, some

#: Sides in pixels to try when a network does not say: CIFAR, MNIST, Tiny ImageNet, ImageNet, Inception.
_SIDES = (32, 28, 64, 224, 299)
_RGB = 3


@dataclass(frozen=True)
class Trial:
    """What a network takes and gives: (channels, height, width) of an image, and how many logits."""

    image_shape: tuple[int, int, int]
    num_classes: int


Shape = tuple[int, int, int]


def trial(
    model: nn.Module,
    image_shape: Shape | None = None,
    *,
    at_hand: Shape | None = None,
    without_numbers: bool = False,
) -> Trial:
    """Show a black image to a network, to learn what it takes and gives; nothing of the network changes.

    What its first convolution takes is tried first, but a network may have another one before it, or look at one
    channel of several: where images of less than three channels work, it is asked for those at hand, then for RGB.

    Args:
        model: images N×C×H×W to logits N×classes.
        image_shape: (channels, height, width); None tries the size that the network names (torchvision's
            transformers, timm), then 32, 28, 64, 224 and 299 pixels, then the images at hand.
        at_hand: the shape of images that it is to be shown.
        without_numbers: take a network on the meta device, too: shapes are known there.

    Raises:
        InputError: it works with no such image, or gives something else than one row of logits, or its weights are
            lazy, on the meta device, or not float32, as images are.
    """
    if not without_numbers:
        _check_weights(model)
    refused: InputError | None = None
    reasons: dict[Shape, str] = {}
    for shape in [image_shape] if image_shape else _likely_shapes(model, at_hand):
        try:
            found = _attempt(model, shape)
        except _NoLogitsError:
            raise
        except InputError as error:  # what stands before the network refuses them
            refused = refused or error
            continue
        if isinstance(found, Trial):
            return found if image_shape else _of_more_channels(model, found, at_hand)
        reasons[shape] = found
    if refused is not None and not reasons:
        raise refused
    if at_hand in reasons:  # what it says to them is what a person wants to know
        reasons = {at_hand: reasons[at_hand], **reasons}
    tried = ["×".join(map(str, shape)) for shape in reasons]
    raise InputError(
        f"the network gives no logits for one image of {some(tried)} ({next(iter(reasons.values()))}); "
        "give one that turns images N×C×H×W into logits"
    )


class _NoLogitsError(InputError):
    """Something else than a tensor came out, as it will for every image."""


def _attempt(model: nn.Module, shape: Shape) -> Trial | str:
    """What comes of one image of this shape, or why nothing does."""
    device = next((weight.device for weight in model.parameters()), None)
    try:
        with frozen(model), torch.no_grad(), quiet():
            output = model(torch.zeros(1, *shape, device=device))
    except InputError:
        raise
    except Exception as error:  # whatever a network says to images that it wasn't made for
        return reason(error)
    if not isinstance(output, torch.Tensor):
        raise _NoLogitsError(
            f"the network gives a {type(output).__name__} instead of a tensor of logits; "
            "give one that returns logits only"
        )
    if output.ndim == 2 and len(output) == 1 and output.shape[1] > 0 and output.is_floating_point():
        return Trial(shape, output.shape[1])
    return f"{'×'.join(map(str, output.shape)) or 'a scalar'} of {output.dtype}, not 1×classes"


def _of_more_channels(model: nn.Module, found: Trial, at_hand: Shape | None) -> Trial:
    """`found`, or what the network gives for as many channels as images have, where its first layer sees fewer."""
    channels, *sides = found.image_shape
    if channels >= _RGB:
        return found
    for count in (at_hand[0] if at_hand else _RGB, _RGB):
        if count == channels:
            return found
        with suppress(InputError):
            more = _attempt(model, (count, sides[0], sides[1]))
            if isinstance(more, Trial):
                return more
    return found


def _check_weights(model: nn.Module) -> None:
    weights = (*model.parameters(), *model.buffers())
    if any(nn.parameter.is_lazy(weight) for weight in weights):
        raise InputError("the network has lazy weights without a shape; call it on an image once before giving it")
    if any(weight.is_inference() for weight in weights):
        raise InputError(
            "the network was built in torch.inference_mode(), so no gradient goes through it; build it outside"
        )
    if any(weight.is_meta for weight in weights):
        raise InputError("the network is on the meta device and holds no numbers; build it on the CPU")
    for weight in model.parameters():
        if weight.is_floating_point() and weight.dtype != torch.float32:
            found = str(weight.dtype).removeprefix("torch.")
            raise InputError(f"the network's weights are {found}; give it as float32, with model.float()")


def _likely_shapes(model: nn.Module, at_hand: Shape | None) -> Iterator[Shape]:
    """Image shapes to try, the likeliest first, each once."""
    convolution = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    counts = [*([convolution.in_channels] if convolution else []), _RGB, 1]
    own: list[Shape] = []
    for module in model.modules():
        about = getattr(module, "pretrained_cfg", None)
        size = about.get("input_size") if isinstance(about, Mapping) else None
        side = getattr(module, "image_size", None)
        if size is not None:
            own += [(channels, size[1], size[2]) for channels in counts]
        elif isinstance(side, int):
            own += [(channels, side, side) for channels in counts]
    seen: set[Shape] = set()

    def fresh(shapes: list[Shape]) -> Iterator[Shape]:
        new = [shape for shape in dict.fromkeys(shapes) if shape not in seen]
        seen.update(new)
        yield from new

    yield from fresh(own)
    yield from fresh([(counts[0], side, side) for side in _SIDES])
    if at_hand:
        yield from fresh([at_hand, *((channels, *at_hand[1:]) for channels in counts)])
    yield from fresh([(channels, side, side) for channels in counts for side in _SIDES])
