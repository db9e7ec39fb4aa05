"""Several processes training one model: who they are, what they exchange."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from coprobe.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of a run; alone by default. Every method of it must be called in all of them.

    Args:
        rank: of this process, from 0.
        count: how many there are.
        fabric: the lightning-fabric that started them; None for one process.
    """

    rank: int = 0
    count: int = 1
    fabric: Any = None

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes; in place where there are several."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def share(self, value: T) -> T:
        """The value that process 0 gave."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process."""
        if self.count == 1:
            return flag
        return bool(self.sum(torch.tensor(int(flag), device=device)))

    def spread(self, model: nn.Module) -> nn.Module:
        """The same model, with the same parameters, whose backward pass averages gradients over the processes."""
        return model if self.count == 1 else cast(nn.Module, self.fabric.setup_module(model))


ALONE = Processes()


def start(devices: int, device: torch.device) -> tuple[Processes, torch.device]:
    """Begin a run on this many devices: this process's place among them, and its own device.

    One device without torchrun is this process alone. Otherwise lightning-fabric starts the other processes, by
    running this program's command line again in each, or finds those that torchrun started.

    Raises:
        InputError: lightning-fabric is not installed, or there are fewer devices.
    """
    world = int(os.environ.get("WORLD_SIZE", devices))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", devices))
    if world == 1:
        return ALONE, device
    if device.type == "cuda" and local > torch.cuda.device_count():
        raise InputError(f"--devices {local}: this machine has {torch.cuda.device_count()} GPUs")
    fabric_of, strategy = _fabric()
    # Buffers are batch-norm statistics, each process its own; to send them would also touch graphs still in use.
    fabric = fabric_of(
        accelerator=device.type,
        devices=local,
        num_nodes=world // local,
        strategy=strategy(process_group_backend="nccl" if device.type == "cuda" else "gloo", broadcast_buffers=False),
    )
    fabric.launch()
    return Processes(fabric.global_rank, fabric.world_size, fabric), fabric.device


def _fabric() -> tuple[Any, Any]:
    """Fabric and its data-parallel strategy, from either package that holds them."""
    for package in ("lightning_fabric", "lightning.fabric"):
        try:
            strategies = importlib.import_module(f"{package}.strategies")
            return importlib.import_module(package).Fabric, strategies.DDPStrategy
        except ImportError:
            continue
    raise InputError("several devices need lightning-fabric; run 'pip install lightning-fabric'")


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose training statistics are those of the whole batch over all processes, on any device.

    torch's own SyncBatchNorm knows no CPU and no second derivatives.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Normalise (batch, channels, height, width)."""
        if not self.training:
            return super().forward(images)
        count = cast(Tensor, _Sum.apply(images.new_tensor(images.numel() / images.shape[1])))
        mean = cast(Tensor, _Sum.apply(images.sum((0, 2, 3)))) / count
        centred = images - mean[:, None, None]
        variance = cast(Tensor, _Sum.apply(centred.square().sum((0, 2, 3)))) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        scale = (variance + self.eps).rsqrt() * self.weight
        return centred * scale[:, None, None] + self.bias[:, None, None]

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked.add_(1)


class _Sum(torch.autograd.Function):
    """The sum over all processes, differentiable as often as one likes."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Sum.apply(gradients[0].contiguous())


def synchronise_batchnorm(model: nn.Module) -> None:
    """Give every batch norm of the model the statistics of the whole batch; weights and names stay."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm2d
