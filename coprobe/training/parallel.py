"""Several processes training one model: who they are, what they exchange."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from coprobe.errors import CoprobeError, InputError, RunError

T = TypeVar("T")

#: Environment variable with the id of the process that started the others.
_LEADER = "COPROBE_LEADER"
#: Seconds that a process which failed leaves to process 0, which mostly failed for the same reason, to say so.
_PATIENCE = 5.0


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

    def gather(self, value: T) -> list[T]:
        """The values that all processes gave, by rank."""
        if self.count == 1:
            return [value]
        values = [value] * self.count
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process."""
        if self.count == 1:
            return flag
        return bool(self.sum(torch.tensor(int(flag), device=device)))

    def spread(self, model: nn.Module) -> nn.Module:
        """The same model, with the same parameters, whose backward pass averages gradients over the processes."""
        if self.fabric is None:
            return model
        with warnings.catch_warnings():
            # Its successor came with torch 2.15 and works otherwise.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
            return cast(nn.Module, self.fabric.setup_module(model))

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block after which only process 0 goes on: no other outlives it, and if it fails, process 0 says why.

        Raises:
            RunError: in process 0, if another one broke down.
        """
        if self.fabric is None:
            yield
        elif self.leads:
            with _outliving(self.fabric.strategy.launcher.procs):
                yield
                _part()
        else:
            try:
                yield
                _part()
            except BaseException:
                time.sleep(_PATIENCE)
                raise


def _part() -> None:
    """Close the connections of all processes at once: to lose one by the other's end can abort a process."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


ALONE = Processes()


def start(
    devices: int, device: torch.device, check: Callable[[], object] = lambda: None
) -> tuple[Processes, torch.device]:
    """Begin a run on this many devices: this process's place among them, and its own device.

    One device without torchrun is this process alone. Otherwise lightning-fabric starts the other processes, by
    running this program's command line again in each, or finds those that torchrun started, whose number counts.

    Args:
        devices: how many.
        device: of which type.
        check: called before other processes are started, so that a mistake that it finds is reported once.

    Raises:
        InputError: lightning-fabric is not installed, there are fewer devices, or they are neither CPU nor CUDA.
    """
    world = int(os.environ.get("WORLD_SIZE", devices))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", devices))
    if world == 1:
        return ALONE, device
    if device.type == "cuda" and local > torch.cuda.device_count():
        raise InputError(f"--devices {local}: this machine has {torch.cuda.device_count()} GPUs")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--devices {local}: only cuda and cpu train data-parallel, not {device.type}")
    fabric_of, strategy = _fabric()
    if "LOCAL_RANK" not in os.environ:
        check()
    _follow_leader()
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
            logging.getLogger(f"{package}.utilities").setLevel(logging.WARNING)  # else it greets every process
            return importlib.import_module(package).Fabric, strategies.DDPStrategy
        except ImportError:
            continue
    raise InputError("several devices need lightning-fabric; run 'pip install lightning-fabric'")


def _follow_leader() -> None:
    """End this process when the one that started it is gone, in whatever way; else it would wait half an hour."""
    leader = int(os.environ.setdefault(_LEADER, str(os.getpid())))

    def follow() -> None:
        while os.getppid() == leader:
            time.sleep(0.5)
        os._exit(1)

    if leader != os.getpid():
        threading.Thread(target=follow, daemon=True).start()


@contextmanager
def _outliving(children: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """The children that are left after the block are killed: they wait for this process, and hold nothing of their own.

    Raises:
        RunError: the connection broke, and a child has failed.
    """
    try:
        yield
    except CoprobeError:
        raise
    except RuntimeError as error:
        codes = [_exit_code(child) for child in children]
        if any(codes):
            failed = next(rank for rank, code in enumerate(codes, 1) if code)
            raise RunError(
                f"process {failed} of the run ended with code {codes[failed - 1]}; pass --resume to go on"
            ) from error
        raise
    finally:
        left = children.copy()
        children.clear()  # in this list lightning-fabric looks for failed children, to kill this process
        for child in left:
            child.kill()
            child.wait()


def _exit_code(child: subprocess.Popen[bytes]) -> int | None:
    """None while it runs; its connections break a moment before it is gone."""
    try:
        return child.wait(timeout=1)
    except subprocess.TimeoutExpired:
        return None


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
        whole = cast(Tensor, _Sum.apply(own))
        count = whole[-1].detach()
        mean = whole[:-1] / count
        centred = exact - mean[:, None, None]
        variance = cast(Tensor, _Sum.apply(centred.square().sum((0, 2, 3)))) / count
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
