"""`coprobe paper`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coprobe.cli.options import PaperOptions, comma_separated, debug_option, device_option, paper_options
from coprobe.cli.output import message, print_table
from coprobe.errors import RunError

if TYPE_CHECKING:
    from coprobe.paper.engines import Failure
    from coprobe.paper.jobs import Job


def _names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    return () if value is None else comma_separated(ctx, param, value)


@click.command()
@paper_options
@click.option("--out", type=click.Path(path_type=Path), help="Directory of the figures.  [default: figures/SCALE]")
@click.option("--only", callback=_names, help="Some of it, as fig3,tab5,claims.")
@click.option("--plan", "show_plan", is_flag=True, help="Print what exists and what is missing; do nothing.")
@click.option("--engine", default="local", show_default=True, help="local, or ray for a cluster.")
@click.option("--jobs", type=click.IntRange(1), help="Runs at a time.  [default: one per core, one on a GPU]")
@click.option("--repair", is_flag=True, help="Make damaged results, and runs of another recipe, again.")
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def command(
    out: Path | None,
    only: tuple[str, ...],
    show_plan: bool,
    engine: str,
    jobs: int | None,
    repair: bool,
    device: str,
    as_json: bool,
    **paper: Any,
) -> None:
    """Make everything that the paper shows at a scale: Figures 1 to 12, Tables 1 to 7, the claims.

    Works out which runs and measurements are needed, takes what is there, does what is missing, and draws. Can be
    stopped at any moment; the same command goes on. A second call only draws.

    \b
    Examples:
      coprobe paper --scale demo
      coprobe paper --scale small --cifar10 parquet:DIR --plan
      coprobe paper --scale paper --device cuda --jobs 4 --only fig1,fig3,fig4
    """
    from coprobe.core.engine import choose_device
    from coprobe.core.files import check_writable_directory
    from coprobe.paper.engines import engine_named, work
    from coprobe.paper.jobs import plan_jobs
    from coprobe.paper.plan import chosen, minutes, order_of, overview, render, seconds_per_pass

    make_engine = engine_named(engine)
    results = PaperOptions(**paper).results()
    out = check_writable_directory(out or Path("figures") / results.scale.name)
    check_writable_directory(results.directory)
    items = chosen(only)
    order = order_of(results, items, device=str(choose_device(device)), repair=repair)
    count = jobs or _at_once(order.device)
    todo = plan_jobs(order)
    if show_plan:
        _show_plan(overview(order, items, seconds_per_pass(order)), count, as_json)
        return
    failures: list[Failure] = []
    if todo:
        workers = make_engine(order, count, 1 / count if order.device.startswith("cuda") else 0.0)
        results.mark()
        about = minutes(todo, seconds_per_pass(order), count)
        jobs_due = f"{len(todo)} job" + ("s" if len(todo) > 1 else "")
        message(f"scale {results.scale.name}: {jobs_due}, {count} at a time, at most {about:.0f} min")
        report = _Report(todo)
        failures = work(todo, workers, on_begin=report.begins, on_end=report.ends)
    rendered = render(results, out, items)
    _tell(rendered, as_json)
    if failures:
        raise RunError(f"{len(failures)} of {len(todo)} jobs failed: {_reasons(failures)}")


def _at_once(device: str) -> int:
    if device != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Report:
    """Says of each job when it ends, and how long the rest may take."""

    def __init__(self, todo: Sequence[Job]) -> None:
        self._left = {job.name: job.passes for job in todo}
        self._all, self._count = sum(self._left.values()), len(todo)
        self._began = time.perf_counter()
        self._since: dict[str, float] = {}

    def begins(self, job: Job) -> None:
        self._since[job.name] = time.perf_counter()

    def ends(self, job: Job, reason: str | None) -> None:
        del self._left[job.name]
        now = time.perf_counter()
        left, done = sum(self._left.values()), self._all - sum(self._left.values())
        rest = (now - self._began) * left / done / 60 if done else 0
        took = f"{now - self._since[job.name]:.0f} s" if reason is None else f"failed: {_last_line(reason)}"
        message(f"[{self._count - len(self._left)}/{self._count}] {job.name}: {took}; about {rest:.0f} min left")


def _show_plan(frame: Any, count: int, as_json: bool) -> None:
    import json

    from coprobe.core.files import records

    if as_json:
        click.echo(json.dumps({"at_once": count, "items": records(frame)}, indent=2))
        return
    rows = [
        [
            row["item"],
            row["title"],
            f"{row['runs'] - row['untrained']}/{row['runs']}",
            f"{row['measurements'] - row['unmeasured']}/{row['measurements']}",
            f"{row['minutes'] / count:.1f}",
        ]
        for row in frame.to_dict("records")
    ]
    total = frame["minutes"].sum() / count
    note = f"At most {total:.0f} minutes here, {count} at a time. A run that several need counts for the first."
    print_table("What the paper needs", ["", "what it shows", "trained", "measured", "minutes"], rows, note, left=2)


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
