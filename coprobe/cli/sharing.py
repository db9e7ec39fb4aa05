"""Commands whose work several processes share, which `--devices` or torchrun starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import torch

    from coprobe.core.processes import Processes


@dataclass(frozen=True)
class Invocation:
    """How the command line was called; click hands it to every command.

    Args:
        again: runs it again as one of several processes and gives the exit code; can be sent to another process.
        processes: those of which this is one already.
    """

    again: Callable[[Processes], int]
    processes: Processes | None = None


def share(devices: int, device: torch.device, remedy: str = "run the command again") -> tuple[Processes, torch.device]:
    """The processes that share the work of this command, and this one's own device.

    Called for several devices where nothing has started several processes, it starts them, each with the same command
    line, waits until they are done, and ends the command.

    Args:
        devices: value of --devices; where torchrun started the processes, their number counts.
        device: of which type.
        remedy: what to do if a process was killed.

    Raises:
        InputError: the devices can't be had.
        CoprobeError: a process that was started here failed; with its message and exit code.
    """
    from coprobe.core.processes import ALONE, check_devices, launch

    context = click.get_current_context()
    invocation = context.find_object(Invocation)
    assert invocation is not None, "the command line gives every command one"
    if invocation.processes is not None:
        return invocation.processes, invocation.processes.connect(device)
    if devices > 1:
        check_devices(devices, device)
        launch(devices, invocation.again, remedy)
        context.exit()
    return ALONE, device
