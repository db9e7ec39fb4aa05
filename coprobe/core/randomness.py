"""Random numbers that belong to single images, whatever batch, process or device they are drawn in."""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from coprobe.core.switches import TURN

#: The increment and the two multipliers of SplitMix64 (Steele, Lea and Flood 2014), as signed numbers.
_GAMMA, _FIRST, _SECOND = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
#: Numbers that are drawn together on a CPU, where they fit the cache.
_PORTION = 2**16


def key_of(seed: int, purpose: str, *place: int) -> int:
    """64 bits that depend on the seed (0 or more), on what they are for, and on where in the work; on nothing else."""
    # as spawn key, because a list of entropy is padded with zeros: (seed, 0) would be (seed,)
    sequence = np.random.SeedSequence(seed, spawn_key=(zlib.crc32(purpose.encode()), *place))
    return int(sequence.generate_state(1, np.uint64)[0])


@contextmanager
def seeded(key: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed the generators that other people's code draws from, torch's, numpy's and Python's; as before afterwards.

    They belong to all threads, of which one at a time can be inside; a lock of their own beside `TURN` could deadlock.

    Args:
        key: 0 or more, below 2⁶⁴, see `key_of`.
        device: whose generator of torch's is meant, beside that of the CPU.
    """
    devices = [device] if torch.device(device).type == "cuda" else []
    with TURN, torch.random.fork_rng(devices):
        before = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global ones are what is meant
        try:
            torch.manual_seed(key)
            random.seed(key)
            np.random.seed(key % 2**32)  # noqa: NPY002
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002


def generator_for(seed: int, purpose: str, *place: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that depends on the seed, on what it is for, and on where in the work; on nothing else.

    So a batch has the same random numbers whatever was computed before it, and two purposes (the order of the
    images, their crops) never share theirs.

    Args:
        seed: 0 or more.
        purpose: in a word, for example `loader`.
        place: epoch and the like, each 0 or more and below 2³².
        device: where the random numbers are drawn.
    """
    return torch.Generator(device=device).manual_seed(key_of(seed, purpose, *place))


@dataclass(frozen=True)
class ImageRandomness:
    """Random numbers of some images of a data set: each image has its own, which nothing but its index decides.

    They come from SplitMix64 as a function of a counter, in integer arithmetic, so every device draws the same, and
    images that are computed together, one by one, or in several processes get theirs.

    Args:
        seed: 0 or more.
        purpose: in a word; the random numbers of two purposes have nothing to do with each other.
        indices: int64 (batch,), on the device of the images; where in the data set each one stands.
    """

    seed: int
    purpose: str
    indices: Tensor

    def of(self, rows: Tensor) -> ImageRandomness:
        """The same for some rows of the batch."""
        return replace(self, indices=self.indices[rows])

    def uniform(self, shape: Sequence[int], *place: int | Tensor) -> Tensor:
        """Uniform in [0, 1), multiples of 2⁻²⁴: float32 (batch, *shape).

        Args:
            shape: of one image.
            place: which draw (restart, step, …): integers, or int64 (batch,) where they differ between images.
        """
        streams = self._streams(place)
        count = math.prod(shape)
        drawn = torch.empty(len(streams), count, device=streams.device)
        # Multiples of the increment: the counter. The first is 1, since 0 would hand out the stream's own key.
        counter = torch.arange(1, count + 1, device=streams.device) * _GAMMA
        together = max(1, _PORTION // max(1, count)) if streams.device.type == "cpu" else max(1, len(streams))
        for mine, some in zip(drawn.split(together), streams.split(together), strict=True):
            bits = _mixed(some[:, None] + counter)
            mine.copy_((bits >> 40) & 0xFFFFFF).mul_(2.0**-24)
        return drawn.view(len(streams), *shape)

    def normal(self, shape: Sequence[int], *place: int | Tensor) -> Tensor:
        """Normal with mean 0 and standard deviation 1 (Box and Muller 1958): float32 (batch, *shape)."""
        first, second = (self.uniform(shape, *place, part).double() for part in range(2))
        radius = (-2 * torch.log1p(-first)).sqrt_()  # 1 − first lies in (0, 1]
        return (radius * (2 * math.pi * second).cos_()).float()

    def _streams(self, place: Sequence[int | Tensor]) -> Tensor:
        """A key per image, int64 (batch,)."""
        key = key_of(self.seed, self.purpose)
        streams = torch.full_like(self.indices, key - 2**64 if key >= 2**63 else key)
        for part in (self.indices, *place):
            streams = _mixed(streams + torch.as_tensor(part + 1, device=streams.device) * _GAMMA)
        return streams


def _mixed(bits: Tensor) -> Tensor:
    """SplitMix64's output function on int64, whose products wrap around; changes its argument."""
    bits ^= (bits >> 30) & (2**34 - 1)  # the shift brings copies of the sign, which a logical one would not
    bits *= _FIRST
    bits ^= (bits >> 27) & (2**37 - 1)
    bits *= _SECOND
    bits ^= (bits >> 31) & (2**33 - 1)
    return bits
