"""Command lines in processes of their own, and processes that are there at once."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from coprobe.core import processes

ROOT = Path(__file__).resolve().parents[1]

#: Seconds until a test gives up.
PATIENCE = 600.0

#: Two processes of coprobe, started by torch.
TORCHRUN = "-m torch.distributed.run --standalone --nproc-per-node 2 -m coprobe"

#: Forks from a server that has imported what commands need: 20 ms, where a new interpreter takes seconds.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "coprobe.training.trainer", "coprobe.probe", "coprobe.paper.engines", "coprobe.paper.own",
        "coprobe.cli.commands.train", "sklearn.datasets", "pyarrow.pandas_compat",
        "torch._dynamo",  # what the first optimizer of a process imports
    ]
)  # fmt: skip
processes.START_METHOD = "forkserver"


@contextmanager
def begun(line: str, folder: Path | None = None, path: Path = ROOT) -> Iterator[subprocess.Popen[str]]:
    """A command line of python in a process group of its own, which is killed in the end.

    Modules are looked for in `path`, then in the repository.
    """
    with subprocess.Popen(
        [sys.executable, *shlex.split(line)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{path}{os.pathsep}{ROOT}", "COLUMNS": "80"},
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, list[str]]:
    """Exit code, stdout, and the lines of stderr but those of epochs, once all processes that write there are gone."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, [line for line in err.splitlines() if not line.startswith("epoch ")]
