"""The mean and standard deviation that a file holds beside its weights, as numbers for images in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from coprobe.checkpoint.payloads import PAIRS
from coprobe.checkpoint.reader.values import TensorSpec
from coprobe.errors import InputError
from coprobe.models.classifier import LARGEST_MEAN

_SAY = "say --mean and --std"
Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Normalisation:
    """What stands before the network, and who says so."""

    mean: Numbers | None
    std: Numbers | None
    source: str
    notes: tuple[str, ...] = ()


def read_pairs(
    pairs: tuple[tuple[str, Any, str, Any], ...], read: Callable[[TensorSpec], list[float]], channels: int
) -> Normalisation | None:
    """The normalisation that the pairs of (name, mean, name, std) agree on; None if there are none.

    Args:
        pairs: the means and standard deviations, stored or plain numbers, 1 or one per channel.
        read: the elements of a stored tensor.
        channels: of the images.

    Raises:
        InputError: they are of another number of channels, no numbers, or differ.
    """
    found: dict[tuple[Numbers, Numbers], str] = {}
    notes: tuple[str, ...] = ()
    for mean_name, mean, std_name, std in pairs:
        source = f"'{mean_name[:40]}' and '{std_name[:40]}' of the file"
        both = (_numbers(mean, read, channels, source), _numbers(std, read, channels, source))
        if max(map(abs, both[0])) > LARGEST_MEAN:
            if min(both[1]) <= 1:
                raise InputError(f"{source} are not of images in [0, 1] ({_shown(*both)}); {_SAY}")
            both = (tuple(m / 255 for m in both[0]), tuple(s / 255 for s in both[1]))
            notes = (f"{source} are of pixels from 0 to 255; divided by 255",)
        found.setdefault(both, source)
    if not found:
        return None
    if len(found) > 1:
        raise InputError(f"holds {len(found)} different normalisations ({', '.join(found.values())}); {_SAY}")
    (mean, std), source = next(iter(found.items()))
    return Normalisation(mean, std, source, notes)


def pairs_among(numbers: Mapping[str, Any]) -> tuple[tuple[str, Any, str, Any], ...]:
    """The means with their standard deviations among values beside the weights."""
    found = []
    for name, mean in numbers.items():
        prefix, dot, leaf = name.rpartition(".")
        for mean_word, std_word in PAIRS:
            partner = f"{prefix}{dot}{std_word}"
            if leaf == mean_word and _is_numeric(mean) and _is_numeric(numbers.get(partner)):
                found.append((name, mean, partner, numbers[partner]))
    return tuple(found)


def _is_numeric(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return 1 <= len(value) <= 16 and all(type(number) in (int, float) for number in value)
    if isinstance(value, TensorSpec):
        return value.is_floating_point and 1 <= value.numel() <= 16 and sum(side > 1 for side in value.shape) <= 1
    return type(value) in (int, float)


def _numbers(value: Any, read: Callable[[TensorSpec], list[float]], channels: int, source: str) -> Numbers:
    numbers = read(value) if isinstance(value, TensorSpec) else value if isinstance(value, list | tuple) else [value]
    if len(numbers) not in (1, channels):
        raise InputError(f"{source} have {len(numbers)} numbers where the images have {channels} channels; {_SAY}")
    if not all(math.isfinite(number) for number in numbers):
        raise InputError(f"{source} are not finite; {_SAY}")
    return tuple(float(number) for number in numbers) * (channels if len(numbers) == 1 else 1)


def _shown(mean: Numbers, std: Numbers) -> str:
    return f"mean {', '.join(f'{m:.3g}' for m in mean[:3])}; std {', '.join(f'{s:.3g}' for s in std[:3])}"
