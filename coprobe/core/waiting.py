"""How the threads of a process wait for each other, which libgomp reads once: when torch is first imported."""

from __future__ import annotations

import os
from pathlib import Path

#: What Linux says of the load; its fourth word begins with how many threads run or would like to.
LOAD = Path("/proc/loadavg")


def choose_waiting() -> None:
    """Let threads sleep while they wait, if other processes want the processors too and nobody has said how to wait.

    Left to itself libgomp lets them spin for milliseconds: on a machine of one's own that is the fastest, on a crowded
    one it keeps those from working who are waited for. Digits don't depend on it. Processes started later inherit it.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ) and others() + threads() > (os.cpu_count() or 1):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def others() -> float:
    """How many threads of other processes run, or would like to: now on Linux, over the last minute elsewhere."""
    try:
        return int(LOAD.read_text().split()[3].partition("/")[0]) - 1
    except (OSError, ValueError, IndexError):
        return round(os.getloadavg()[0]) if hasattr(os, "getloadavg") else 0


def threads() -> int:
    """How many this process is about to have."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdecimal():
        return int(said)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
