"""Batch norm of a model that several processes train together."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose training statistics are those of the whole batch over all processes, on any device.

    torch's own SyncBatchNorm knows no CPU and no second derivatives.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Normalise (batch, channels, height, width)."""
        if not self.training:
            return super().forward(images)
        exact = images.to(torch.promote_types(images.dtype, torch.float32))  # as torch's own does under autocast
        own = torch.cat([exact.sum((0, 2, 3)), exact.new_full((1,), images.numel() // images.shape[1])])
        whole = all_reduce(own)
        count = whole[-1].detach()
        mean = whole[:-1] / count
        centred = exact - mean[:, None, None]
        variance = all_reduce(centred.square().sum((0, 2, 3))) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(images.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked.add_(1)


def synchronise_batchnorm(model: nn.Module) -> None:
    """Give every batch norm of the model the statistics of the whole batch; weights and names stay."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm2d
