"""Mean and standard deviation per channel, and where a file or a network holds them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from coprobe.checkpoint.reader.values import TensorSpec
from coprobe.errors import InputError
from coprobe.models.classifier import LARGEST_MEAN

#: What people call the mean, to what they then call the standard deviation beside it.
STD_OF = {
    "mean": "std",
    "mu": "sigma",
    "new_mean": "new_std",
    "_mean": "_std",
    "norm_mean": "norm_std",
    "pixel_mean": "pixel_std",
    "image_mean": "image_std",
}
GIVEN, OUR_FILE = "--mean/--std", "the file"
_MOST_CHANNELS = 16  # more than any image has
_SAY = "say --mean and --std"
#: The least standard deviation of images in [0, 1] that is believed where it may as well be that of accuracies.
_LEAST_STD = 0.03

Numbers = tuple[float, ...]
#: Name and value of a mean, then those of a standard deviation; values are stored tensors or plain numbers.
Pair = tuple[str, Any, str, Any]


@dataclass(frozen=True)
class Normalisation:
    """What is done to images in [0, 1] before the network sees them: (image - mean) / std, per channel.

    Attributes:
        name: what people call it ("CIFAR-10's", "[-1, 1]", "none"), or what says it ("the file", "--mean/--std").
        mean: one number per channel; None for zeros.
        std: one number per channel; None for ones.
        notes: what a person should know about it, a sentence each.
        sure: whether it belongs to the network; numbers that only stand beside the weights may mean something else.
    """

    name: str
    mean: Numbers | None = None
    std: Numbers | None = None
    notes: tuple[str, ...] = ()
    sure: bool = True

    @property
    def options(self) -> str:
        """How to ask for it on the command line."""
        if self.mean is None or self.std is None:
            return "leave out --mean and --std"
        mean, std = (",".join(f"{number:g}" for number in numbers) for numbers in (self.mean, self.std))
        return f"pass --mean {mean} --std {std}"


def pairs_in(values: Mapping[str, Any]) -> tuple[Pair, ...]:
    """The means with their standard deviations among named values, by their names."""
    found = []
    for name, mean in values.items():
        std = _std_name(name)
        if std is not None and std in values and _is_per_channel(mean) and _is_per_channel(values[std]):
            found.append((name, mean, std, values[std]))
    return tuple(found)


def normalises_itself(network: nn.Module) -> bool:
    """Whether a network has buffers for a mean and a standard deviation, so that it normalises images itself."""
    names = {name for name, _ in network.named_buffers()}
    return any(_std_name(name) in names for name in names)


def without_file(mean: Numbers | None, std: Numbers | None, network: nn.Module) -> Normalisation:
    """The normalisation where no file says any: what a person gives, else what is inside the network, else nothing."""
    given = GIVEN if mean is not None or std is not None else ""
    return Normalisation(given or ("inside the network" if normalises_itself(network) else ""), mean, std)


def read_normalisation(
    pairs: tuple[Pair, ...], read: Callable[[TensorSpec], list[float]], channels: int
) -> Normalisation | None:
    """The normalisation that all pairs agree on; None if there are none.

    Args:
        pairs: means and standard deviations, one number or one per channel.
        read: the elements of a stored tensor.
        channels: of the images.

    Raises:
        InputError: they are of another number of channels, not finite, or differ.
    """
    found: dict[tuple[Numbers, Numbers], str] = {}
    notes: tuple[str, ...] = ()
    for mean_name, mean, std_name, std in pairs:
        name = f"'{mean_name[:40]}' and '{std_name[:40]}' of the file"
        both = (_numbers(mean, read, channels, name), _numbers(std, read, channels, name))
        if max(map(abs, both[0])) > LARGEST_MEAN:
            if min(both[1]) <= 1:
                raise InputError(f"{name} are not of images in [0, 1] ({_shown(*both)}); {_SAY}")
            both = (tuple(m / 255 for m in both[0]), tuple(s / 255 for s in both[1]))
            notes = (f"{name} are of pixels from 0 to 255; divided by 255",)
        found.setdefault(both, name)
    if not found:
        return None
    if len(found) > 1:
        raise InputError(f"holds {len(found)} different normalisations ({', '.join(found.values())}); {_SAY}")
    (both, name), *_ = found.items()
    return Normalisation(name, *both, notes)


def read_beside(
    pairs: tuple[Pair, ...], read: Callable[[TensorSpec], list[float]], channels: int
) -> Normalisation | None:
    """The normalisation that stands beside the weights, as far as it can be one; None if there are no pairs.

    People also keep means and standard deviations of accuracies there: what can't be of images is left out with a note.

    Args:
        pairs: as for `read_normalisation`.
        read: as there.
        channels: of the images.
    """
    believed: list[Pair] = []
    notes: list[str] = []
    for pair in pairs:
        doubt = _doubt(pair, read, channels)
        believed += [] if doubt else [pair]
        if doubt:
            names = f"'{pair[0][:40]}' and '{pair[2][:40]}' beside the weights"
            notes.append(f"{names} are no normalisation of images ({doubt}), and are not used")
    try:
        found = read_normalisation(tuple(believed), read, channels)
    except InputError as error:  # several that differ
        return Normalisation("", notes=(*notes, f"it {error}; none of them is used"))
    if found is None:
        return Normalisation("", notes=tuple(notes)) if notes else None
    name = found.name.replace("of the file", "beside the weights")
    return replace(found, name=name, notes=(*notes, *found.notes), sure=False)


def _doubt(pair: Pair, read: Callable[[TensorSpec], list[float]], channels: int) -> str:
    """Why a pair is no normalisation of images; empty if it may be one."""
    single = [not (v.shape if isinstance(v, TensorSpec) else isinstance(v, list | tuple)) for v in (pair[1], pair[3])]
    mean, std = (_listed(value, read) for value in (pair[1], pair[3]))
    if any(single):
        return f"single numbers, {mean[0]:.4g} and {std[0]:.4g}"
    if not len(mean) == len(std) == channels:
        return f"{len(mean)} and {len(std)} numbers where images have {channels} channels"
    if not all(map(math.isfinite, (*mean, *std))):
        return "not finite"
    scale = 255 if max(mean) > LARGEST_MEAN else 1
    if min(mean) < 0 or max(mean) > scale or min(std) < _LEAST_STD * scale or max(std) > scale:
        return f"out of range: {_shown(tuple(mean), tuple(std))}"
    return ""


def _std_name(name: str) -> str | None:
    """What the standard deviation beside the mean `name` is called; None if `name` is none of a mean."""
    prefix, dot, leaf = name.rpartition(".")
    return f"{prefix}{dot}{STD_OF[leaf]}" if leaf in STD_OF else None


def _is_per_channel(value: Any) -> bool:
    """Whether it may be one number, or one per channel of an image."""
    if isinstance(value, list | tuple):
        return 1 <= len(value) <= _MOST_CHANNELS and all(type(number) in (int, float) for number in value)
    if isinstance(value, TensorSpec):
        is_row = sum(side > 1 for side in value.shape) <= 1
        return value.is_floating_point and 1 <= value.numel() <= _MOST_CHANNELS and is_row
    return type(value) in (int, float)


def _listed(value: Any, read: Callable[[TensorSpec], list[float]]) -> list[float]:
    if isinstance(value, TensorSpec):
        return read(value)
    return list(value) if isinstance(value, list | tuple) else [value]


def _numbers(value: Any, read: Callable[[TensorSpec], list[float]], channels: int, name: str) -> Numbers:
    numbers = _listed(value, read)
    if len(numbers) not in (1, channels):
        raise InputError(f"{name} have {len(numbers)} numbers where the images have {channels} channels; {_SAY}")
    if not all(math.isfinite(number) for number in numbers):
        raise InputError(f"{name} are not finite; {_SAY}")
    return tuple(float(number) for number in numbers) * (channels if len(numbers) == 1 else 1)


def _shown(mean: Numbers, std: Numbers) -> str:
    return f"mean {', '.join(f'{m:.3g}' for m in mean[:3])}; std {', '.join(f'{s:.3g}' for s in std[:3])}"
