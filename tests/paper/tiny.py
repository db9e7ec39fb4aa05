"""A scale so small that a run takes well under a second; enough for whatever is not about numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from coprobe.paper.engines import Engine, answer, work
from coprobe.paper.jobs import Job, Order, plan_jobs
from coprobe.paper.needs import Need
from coprobe.paper.runs import Scale

TINY = Scale(
    "tiny",
    "digits, in no time",
    {"cifar10": "digits"},
    {
        "width": 6, "limit_train": 20, "held_out": 10, "epochs": 2, "batch_size": 10, "lr": 0.05,
        "schedule": "constant", "augment": "none",
    },
    {"fgsm": "fgsm", "pgd10": "pgd:2"},
    stretch=2.5,
    weights=0.1,
    co_weights=0.001,
    baseline="fgsm",
    co_images=10,
    images=10,
)  # fmt: skip


def order_for(directory: Path, needs: Sequence[Need], **how: object) -> Order:
    """What is made in a directory at the tiny scale."""
    return Order(directory, TINY, tuple(needs), **how)  # type: ignore[arg-type]


class InlineEngine(Engine):
    """Does a job in this process, when it is asked what has ended; an engine need not be more."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.jobs: list[Job] = []
        self.closed = False

    @property
    def free(self) -> bool:
        return not self.jobs

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def finished(self) -> list[tuple[Job, str | None]]:
        job = self.jobs.pop()
        return [(job, answer(job, self.order))]

    def close(self) -> None:
        self.closed = True


def do(order: Order) -> list[str]:
    """Do all of it in this process; the names of the jobs, in the order in which they were done."""
    done: list[str] = []
    failures = work(plan_jobs(order), InlineEngine(order), on_begin=lambda job: done.append(job.name))
    assert not failures
    return done


def files(directory: Path) -> dict[str, bytes]:
    """The results and histories in a directory of runs, without what differs from time to time."""
    found = sorted(directory.rglob("*.csv"))
    return {str(path.relative_to(directory)): _timeless(path) for path in found}


def _timeless(path: Path) -> bytes:
    """history.csv has the seconds that epochs took; results have none."""
    if path.name != "history.csv":
        return path.read_bytes()
    import pandas as pd

    frame = pd.read_csv(path)
    vary = [column for column in frame if "second" in column or "memory" in column]
    return frame.drop(columns=vary).to_csv().encode()
