"""Sums over images that come out the same, bit for bit, however the images are divided among batches and processes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


class ImageSums:
    """The sum of a tensor per image, added up in the order of a binary tree over the images' indices.

    The tree is that of blocks of 2^level images which begin at a multiple of their length; a block is the sum of its
    two halves, or the half that has images. So every order of adding gives the same number, and no more than two
    blocks per level have to be kept: memory grows with the logarithm of the number of images.
    """

    def __init__(self) -> None:
        self._blocks: dict[tuple[int, int], Tensor] = {}

    def add(self, start: int, values: Tensor) -> None:
        """Add the values (batch, …) of consecutive images, the first of which has the index `start`."""
        level, stop = 0, start + len(values)
        while start < stop:
            if start % 2:
                self._insert(level, start, values[0].clone())  # a view would hold on to the whole batch
                start, values = start + 1, values[1:]
            if stop % 2 and start < stop:
                self._insert(level, stop - 1, values[-1].clone())
                stop, values = stop - 1, values[:-1]
            values = values[::2] + values[1::2]
            level, start, stop = level + 1, start // 2, stop // 2

    def _insert(self, level: int, place: int, value: Tensor) -> None:
        while (level, place ^ 1) in self._blocks:
            value = value + self._blocks.pop((level, place ^ 1))
            level, place = level + 1, place // 2
        self._blocks[level, place] = value

    @property
    def state(self) -> dict[tuple[int, int], Tensor]:
        """What has been added, on the host, to be taken over by `merge_state`."""
        return {key: value.cpu() for key, value in self._blocks.items()}

    def merge_state(self, blocks: Mapping[tuple[int, int], Tensor]) -> None:
        """Add what was added elsewhere: the `state` of sums over other images."""
        for (level, place), value in blocks.items():
            self._insert(level, place, value)

    def total(self) -> Tensor | None:
        """The sum of all, on the host; None if there were no images."""
        rest = self.state
        while len(rest) > 1:
            level, place = min(rest)
            value, other = rest.pop((level, place)), rest.pop((level, place ^ 1), None)
            rest[level + 1, place // 2] = value if other is None else value + other
        return next(iter(rest.values()), None)
