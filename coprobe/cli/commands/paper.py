"""`coprobe paper`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coprobe.cli.options import PaperOptions, comma_separated, debug_option, device_option, paper_options
from coprobe.cli.output import message, print_table
from coprobe.errors import RunError

if TYPE_CHECKING:
    from coprobe.paper.engines import Engine, Failure
    from coprobe.paper.jobs import Job, Order

#: What `nice` adds for work in the background.
_LOWEST = 19


def _names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    return () if value is None else comma_separated(ctx, param, value)


@click.command()
@paper_options
@click.option("--out", type=click.Path(path_type=Path), help="Directory of the figures.  [default: figures/SCALE]")
@click.option("--only", callback=_names, help="Some of it, as fig3,tab5,claims.")
@click.option("--plan", "show_plan", is_flag=True, help="Print what exists and what is missing; do nothing.")
@click.option("--draw", "only_draw", is_flag=True, help="Draw what can be drawn from what exists; make nothing else.")
@click.option("--engine", default="local", show_default=True, help="local, or ray for a cluster.")
@click.option("--jobs", type=click.IntRange(1), help="Runs at a time.  [default: one per core, one on a GPU]")
@click.option(
    "--weights",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where runs are trained and their weights stay.  [default: with the results, in --runs]",
)
@click.option("--background", is_flag=True, help="At the lowest priority, and never twice at the same --weights.")
@click.option("--repair", is_flag=True, help="Make damaged results, and runs of another recipe, again.")
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def command(
    out: Path | None,
    only: tuple[str, ...],
    show_plan: bool,
    only_draw: bool,
    engine: str,
    jobs: int | None,
    weights: Path | None,
    background: bool,
    repair: bool,
    device: str,
    as_json: bool,
    **paper: Any,
) -> None:
    """Make everything that the paper shows at a scale: Figures 1 to 12, Tables 1 to 7, the claims.

    Works out which runs and measurements are needed, takes what is there, does what is missing, and draws. Can be
    stopped at any moment, and loses a minute of training at most; the same command goes on. A second call only draws.
    Weights that are lost are trained again once something is to be measured of them.

    \b
    Examples:
      coprobe paper --scale demo
      coprobe paper --scale small --cifar10 parquet:DIR --plan
      coprobe paper --scale small --cifar10 parquet:DIR --weights ~/weights --background
      coprobe paper --scale paper --device cuda --jobs 4 --only fig1,fig3,fig4
    """
    from coprobe.core.engine import choose_device
    from coprobe.core.files import check_writable_directory
    from coprobe.paper import journal
    from coprobe.paper.engines import engine_named
    from coprobe.paper.jobs import plan_jobs
    from coprobe.paper.plan import chosen, order_of, overview, render, seconds_per_pass

    make_engine = engine_named(engine)
    results = PaperOptions(**paper).results(weights)
    out = check_writable_directory(out or Path("figures") / results.scale.name)
    check_writable_directory(results.directory)
    items = chosen(only)
    order = order_of(results, items, device=str(choose_device(device)), repair=repair)
    count = jobs or _at_once(order.device)
    todo = plan_jobs(order)
    if show_plan:
        frame = overview(order, items, seconds_per_pass(order))
        _show_plan(frame, count, journal.at_work(order), journal.failures(order), as_json)
        return
    with _in_background(weights or results.directory) if background else nullcontext():
        failures = [] if only_draw else _make(todo, order, make_engine, count)
    _tell(render(results, out, items), as_json)
    if failures:
        raise RunError(f"{len(failures)} of {len(todo)} jobs failed: {_reasons(failures)}")


@contextmanager
def _in_background(directory: Path) -> Iterator[None]:
    """A block at the lowest priority; `InputError` where another one works in the background at this directory."""
    from coprobe.core.files import exclusive

    with exclusive(directory, wait=False):
        if hasattr(os, "nice"):
            os.nice(_LOWEST)
        yield


def _make(
    todo: Sequence[Job], order: Order, make_engine: Callable[[Order, int, float], Engine], count: int
) -> list[Failure]:
    """Do the jobs, so many at a time, and say how far they are; what failed."""
    from coprobe.paper.engines import work
    from coprobe.paper.plan import minutes, seconds_per_pass

    if not todo:
        return []
    workers = make_engine(order, count, 1 / count if order.device.startswith("cuda") else 0.0)
    order.results.mark()
    about = minutes(todo, seconds_per_pass(order), count)
    due = f"{len(todo)} job" + ("s" if len(todo) > 1 else "")
    message(f"scale {order.scale.name}: {due}, {count} at a time, at most about {about:.0f} min")
    report = _Report(todo, order)
    return work(todo, workers, on_begin=report.begins, on_end=report.ends)


def _at_once(device: str) -> int:
    if device != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Report:
    """Says of each job when it ends, and how long the rest may take."""

    def __init__(self, todo: Sequence[Job], order: Order) -> None:
        self._order = order
        self._left = {job.name: job.passes for job in todo}
        self._all, self._count = sum(self._left.values()), len(todo)
        self._began = time.perf_counter()
        self._since: dict[str, float] = {}

    def begins(self, job: Job) -> None:
        self._since[job.name] = time.perf_counter()

    def ends(self, job: Job, reason: str | None) -> None:
        from coprobe.paper import journal

        journal.ended(self._order, job.name, reason)
        del self._left[job.name]
        now = time.perf_counter()
        left, done = sum(self._left.values()), self._all - sum(self._left.values())
        rest = (now - self._began) * left / done / 60 if done else 0
        took = f"{now - self._since[job.name]:.0f} s" if reason is None else f"failed: {_last_line(reason)}"
        message(f"[{self._count - len(self._left)}/{self._count}] {job.name}: {took}; about {rest:.0f} min left")


def _show_plan(frame: Any, count: int, at_work: Mapping[str, str], failures: Mapping[str, str], as_json: bool) -> None:
    import json

    from coprobe.core.files import records

    if as_json:
        about = {"at_once": count, "items": records(frame), "at_work": at_work, "failures": failures}
        click.echo(json.dumps(about, indent=2))
        return
    rows = [
        [
            row["item"],
            row["title"],
            f"{row['runs'] - row['untrained']}/{row['runs']}",
            f"{row['measurements'] - row['unmeasured']}/{row['measurements']}",
            f"{row['minutes'] / count / 60:.1f}",
        ]
        for row in frame.to_dict("records")
    ]
    total = frame["minutes"].sum() / count
    note = (
        f"At most about {total / 60:.1f} hours here, {count} at a time: images that are misclassified leave attacks "
        "early. A run that several need counts for the first."
    )
    print_table("What the paper needs", ["", "what it shows", "trained", "measured", "hours"], rows, note, left=2)
    for run, stage in at_work.items():
        click.echo(f"at work: {run} ({stage})")
    for job, reason in failures.items():
        click.echo(f"failed: {job}: {_last_line(reason)}")


def _tell(rendered: Any, as_json: bool) -> None:
    import json

    if as_json:
        click.echo(json.dumps({"files": list(map(str, rendered.files)), "missing": rendered.missing}, indent=2))
        return
    for path in rendered.files:
        click.echo(str(path))
    for name, reason in rendered.missing.items():
        message(f"{name} is not there yet: {reason}")


def _reasons(failures: Sequence[Failure]) -> str:
    return "; ".join(f"{failure.job.name}: {_last_line(failure.reason)}" for failure in failures[:3])


def _last_line(reason: str) -> str:
    """What is said last: of a traceback, the error."""
    return reason.strip().splitlines()[-1]
