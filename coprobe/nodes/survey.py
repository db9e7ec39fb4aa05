"""Where an activation has its images and its channels, seen in passes beside those that people make.

Its channels are followed through a pass with one image. Which axis holds the images, a pass with three shows: the one
that is three times as long. Where an image has several rows there (crops, views, windows that a network folds into the
batch), it has to be found out which: those that are the same with this image alone and among others.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from coprobe.errors import InputError
from coprobe.nodes.axes import ChannelTracker, aside

#: How many images a pass has that shows where they are.
_SEVERAL = 3

#: By how much an image's rows differ from those with other images, relative to the largest value, and how far behind
#: the next guess has to be.
_TOLERANCE, _FAR = 1e-3, 4


#: How a network says that it can't take three images, and a hook that the network goes another way with them.
_REFUSALS = (RuntimeError, ValueError, InputError)


@dataclass(frozen=True)
class Layout:
    """How the activations of one place lie.

    Attributes:
        channels: their axis; None where that can't be told.
        images: their axis; None where no axis is the images, or their rows can't be told apart.
        outer, inner: that axis is outer × images × inner; both 1 where every image has one row.
        rows: how long the first axis is with one image, and with three.
    """

    channels: int | None
    images: int | None = 0
    outer: int = 1
    inner: int = 1
    rows: tuple[int, int] = (1, _SEVERAL)

    @property
    def folded(self) -> int:
        """Rows of an image."""
        return self.outer * self.inner

    def images_first(self, activation: Tensor, channels: int) -> Tensor:
        """The activation as (images, channels, rows of an image if several, positions …); shares its memory if it can.

        Args:
            activation: as it lies.
            channels: the axis to take for theirs.
        """
        return self._unfolded(activation).permute(self._order(activation.dim(), channels))

    def as_it_lay(self, moved: Tensor, like: Tensor, channels: int) -> Tensor:
        """What `images_first` gave, or something in its place, back in the shape of the activation `like`."""
        order = self._order(like.dim(), channels)
        back = sorted(range(len(order)), key=order.__getitem__)
        return moved.permute(back).reshape(like.shape)

    def _unfolded(self, activation: Tensor) -> Tensor:
        parts = [size for size in (self.outer, -1, self.inner) if size != 1]
        return activation.unflatten(self.images or 0, parts) if len(parts) > 1 else activation

    def _order(self, dim: int, channels: int) -> list[int]:
        """The axes of the unfolded activation, images first, then channels."""
        at = self.images or 0
        more = (self.outer > 1) + (self.inner > 1)
        first = at + (self.outer > 1)
        second = channels + more * (channels > at)
        return [first, second, *(axis for axis in range(dim + more) if axis not in (first, second))]


class Survey:
    """Passes of a network beside those that people make, in which hooks call `see` with what passes at a place."""

    def __init__(self) -> None:
        self.tracker = ChannelTracker()
        self._alone: dict[Hashable, tuple[torch.Size, int | None]] = {}
        self._together: dict[Hashable, torch.Size] | None = {}
        self._followed: set[Hashable] = set()
        self._folded: set[Hashable] = set()
        self._values: list[dict[Hashable, Tensor]] = []
        self._note: Callable[[Hashable, Tensor], None] = self._note_alone

    def see(self, place: Hashable, activation: Tensor) -> None:
        """Note what passes at a place, which is any key; of several visits the first counts."""
        self._note(place, activation)

    def run(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        """Make the passes, in evaluation mode and without gradients, from these arguments of a pass.

        What the network or a hook raises in the pass with one image is raised.
        """
        arguments = args, kwargs
        with self.tracker.following(model):
            one_args, one_kwargs = tree_map(self._declared, arguments)
            model(*one_args, **one_kwargs)
        several = tree_map(_several, arguments)
        with aside(model):
            self._note = self._note_together
            try:
                model(*several[0], **several[1])
            except _REFUSALS:
                self._together = None
            self._folded = {place for place in self._alone if (self._rows(place) or 1) > 1}
            if self._folded:
                self._note = self._note_values
                with contextlib.suppress(*_REFUSALS):  # then these places are not believed in
                    for images in _noise_and_parts(several):
                        self._values.append({})
                        model(*images[0], **images[1])

    def _declared(self, argument: Any) -> Any:
        if not _is_batch(argument):
            return argument
        image = argument[:1].clone() if len(argument) else argument.new_zeros(1, *argument.shape[1:])
        self.tracker.declare(image, 1 if image.dim() == 4 else None)
        return image

    def _note_alone(self, place: Hashable, activation: Tensor) -> None:
        self._alone.setdefault(place, (activation.shape, self.tracker.axis(activation)))
        if self.tracker.depends_on_images(activation):
            self._followed.add(place)

    def _note_together(self, place: Hashable, activation: Tensor) -> None:
        if self._together is not None:
            self._together.setdefault(place, activation.shape)

    def _note_values(self, place: Hashable, activation: Tensor) -> None:
        if place in self._folded:
            self._values[-1].setdefault(place, activation.clone())

    def places(self) -> Iterator[tuple[Any, torch.Size]]:
        """What was seen in the pass with one image, in order, each with the shape of its activation."""
        for place, (shape, _) in self._alone.items():
            yield place, shape

    def may_depend_on_images(self, place: Hashable) -> bool:
        """Whether what passes there can be followed from the images, or grows with their number."""
        return place in self._followed or self._rows(place) is not None or self._together is None

    def layout(self, place: Hashable) -> Layout:
        """How the activations of a place lie that was seen."""
        shape, channels = self._alone[place]
        if self._together is None:
            return Layout(channels)  # which believes in one row for each image, as long as their numbers agree
        together = self._together.get(place, torch.Size())
        rows = (shape[0], together[0]) if shape and together else (0, 0)
        at = _grown(shape, together)
        if at is None or place not in self._folded:
            return Layout(channels, at, rows=rows)
        folds = _folds([values[place] for values in self._values if place in values], at, shape[at])
        return Layout(channels, at, *folds, rows) if folds else Layout(channels, None, rows=rows)

    def _rows(self, place: Hashable) -> int | None:
        """How many rows an image has at a place; None where that isn't known."""
        shape = self._alone[place][0]
        at = None if self._together is None else _grown(shape, self._together.get(place, torch.Size()))
        return None if at is None else shape[at]


def _is_batch(argument: Any) -> bool:
    return isinstance(argument, Tensor) and argument.dim() > 0


def images_among(*arguments: Any) -> tuple[int, ...]:
    """The shape of the images that a network is given; () if there are none."""
    return next((tuple(argument.shape) for argument in tree_leaves(arguments) if _is_batch(argument)), ())


def _several(argument: Any) -> Any:
    if not _is_batch(argument):
        return argument
    some = argument if len(argument) else argument.new_zeros(1, *argument.shape[1:])
    return some[torch.arange(_SEVERAL, device=some.device) % len(some)]


def _noise(images: Any) -> Any:
    """As many that differ everywhere, in the same range."""
    if not _is_batch(images) or not images.is_floating_point():
        return images
    low, high = float(images.amin()), float(images.amax())
    if high - low < 0.1:
        low, high = low - 0.5, high + 0.5
    drawn = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    return (low + (high - low) * drawn).to(images)


def _noise_and_parts(several: Any) -> Iterator[Any]:
    """Arguments with noise instead of images, and then each of its images alone."""
    noise = tree_map(_noise, several)
    for pick in (slice(None), *(slice(n, n + 1) for n in range(_SEVERAL))):
        yield tree_map(lambda images, pick=pick: images[pick].clone() if _is_batch(images) else images, noise)


def _grown(alone: Sequence[int], together: Sequence[int]) -> int | None:
    """The one axis that is as many times as long with several images."""
    if len(alone) != len(together):
        return None
    axes = [axis for axis, (one, more) in enumerate(zip(alone, together, strict=True)) if one != more]
    return axes[0] if len(axes) == 1 and together[axes[0]] == _SEVERAL * alone[axes[0]] else None


def _folds(values: Sequence[Tensor], at: int, rows: int) -> tuple[int, int] | None:
    """How images lie along an axis: that many times outside each other, and with that many rows each inside."""
    if len(values) != 1 + _SEVERAL:
        return None
    together, *alone = values
    scale = float(together.abs().amax())
    offs = {}
    for outer in range(1, rows + 1):
        if rows % outer == 0:
            inner = rows // outer
            among = together.unflatten(at, (outer, _SEVERAL, inner)).unbind(at + 1)
            pairs = zip(among, alone, strict=True)
            offs[outer, inner] = max(float((one.flatten(at, at + 1) - by).abs().amax()) for one, by in pairs)
    best, *others = sorted(offs, key=offs.__getitem__)
    if not math.isfinite(scale) or not math.isfinite(offs[best]):
        return None
    clear = all(offs[other] > _FAR * max(offs[best], _TOLERANCE * scale) for other in others)
    return best if clear or max(offs.values()) <= _TOLERANCE * scale else None
