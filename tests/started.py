"""Command lines in processes of their own."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: Seconds until a test gives up.
PATIENCE = 120.0

#: Two processes of coprobe, started by torch.
TORCHRUN = "-m torch.distributed.run --standalone --nproc-per-node 2 -m coprobe"


@contextmanager
def begun(line: str, folder: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """A command line of python in a process group of its own, which has to be empty in the end."""
    with subprocess.Popen(
        [sys.executable, *shlex.split(line)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "80"},
        start_new_session=True,
    ) as process:
        try:
            yield process
            with pytest.raises(ProcessLookupError):
                os.killpg(process.pid, 0)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
