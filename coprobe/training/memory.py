"""A row per training image that is kept from epoch to epoch, as FGSM-MEP and ATAS need."""

from __future__ import annotations

import torch
from torch import Tensor

from coprobe.core.processes import ALONE, Processes
from coprobe.data import Batch


class Memory:
    """A tensor per training image, on the device, in half precision.

    Each of several processes holds the images whose index modulo their number is its rank, so that the memory is
    divided among them. A batch is put together from all of them; what is read does not depend on how many there are.

    Args:
        rows: the values to begin with, for every image: (images, …).
        dtype: in which they are held. float16 rounds to within 1/2000 of a value; magnitudes must lie between 6e-8
            and 65 504.
        processes: those that share it.
    """

    def __init__(self, rows: Tensor, dtype: torch.dtype = torch.float16, processes: Processes = ALONE) -> None:
        self.images = len(rows)
        self.processes = processes
        own = rows[processes.rank :: processes.world_size].to(dtype)
        # One row more, into which the images of other processes are written.
        self._rows = torch.cat([own, own.new_zeros(1, *rows.shape[1:])]) if processes.world_size > 1 else own

    def read(self, batch: Batch) -> Tensor:
        """The rows of this process's part of the batch, in the type of its images."""
        if self.processes.world_size == 1:
            return self._rows[batch.indices].to(batch.images.dtype)
        whole = self.processes.sum(torch.where(self._owned(batch), self._rows[self._places(batch)], 0))
        return whole[batch.part].to(batch.images.dtype)

    def write(self, batch: Batch, values: Tensor) -> None:
        """Replace the rows of this process's part of the batch."""
        values = values.to(self._rows.dtype)
        if self.processes.world_size == 1:
            self._rows[batch.indices] = values
            return
        whole = values.new_zeros(len(batch.whole), *values.shape[1:])
        whole[batch.part] = values
        self._rows[self._places(batch)] = self.processes.sum(whole)

    def gather(self) -> Tensor:
        """The rows of all images, in every process."""
        count, rank = self.processes.world_size, self.processes.rank
        if count == 1:
            return self._rows
        rows = self._rows.new_zeros(self.images, *self._rows.shape[1:])
        rows[rank::count] = self._rows[:-1]
        return self.processes.sum(rows)

    def _owned(self, batch: Batch) -> Tensor:
        mine = batch.whole % self.processes.world_size == self.processes.rank
        return mine.view(-1, *[1] * (self._rows.dim() - 1))

    def _places(self, batch: Batch) -> Tensor:
        """Where in the own rows each image of the whole batch is; the last row for those of other processes."""
        own = batch.whole % self.processes.world_size == self.processes.rank
        return torch.where(own, batch.whole // self.processes.world_size, len(self._rows) - 1)
