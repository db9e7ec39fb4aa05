"""What is being made right now and what failed, for whoever looks while other processes work."""

from __future__ import annotations

import json
from pathlib import Path

from coprobe.core.files import is_kept, write_json
from coprobe.paper.jobs import Order

_FILE = "failures.json"


def failures(order: Order) -> dict[str, str]:
    """The jobs that failed when they were last done, and why."""
    try:
        found = json.loads(_path(order).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(reason) for name, reason in found.items()} if isinstance(found, dict) else {}


def ended(order: Order, job: str, reason: str | None) -> None:
    """Keep why a job failed, or forget it if `reason` is None, since it was done."""
    before = failures(order)
    now = {name: why for name, why in before.items() if name != job} | ({} if reason is None else {job: reason})
    if now != before:
        write_json(_path(order), now)


def at_work(order: Order) -> dict[str, str]:
    """The runs at which a process works, and how far it is."""
    results = order.results
    found = {}
    for name in results.runs:
        for seed in range(results.seeds_of(name)):
            run = results.workplace(name, seed)
            if not is_kept(run.directory):
                continue
            done = len(run.history) if (run.directory / "history.csv").exists() else 0
            training = run.begun and run.outcome is None
            found[run.directory.name] = f"epoch {done + 1} of {run.recipe.epochs}" if training else "measured"
    return found


def _path(order: Order) -> Path:
    return (order.weights or order.directory) / _FILE
