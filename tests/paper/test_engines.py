"""Engines: whatever happens to workers, to their parent or to the disk, the files are the same in the end."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from coprobe.errors import InputError, InterruptedRunError, RunError
from coprobe.paper import engines
from coprobe.paper.engines import LocalEngine, RayEngine, engine_named, work
from coprobe.paper.jobs import Job, Order, plan_jobs
from coprobe.paper.needs import Need
from tests.paper.tiny import TINY, InlineEngine, do, files

#: Trainings of a few seconds, so that something can happen in the middle of one.
SLOW = replace(TINY, knobs={**TINY.knobs, "limit_train": 60, "epochs": 6})
NEEDS = (
    Need("mep-12", "accuracy", "last", 16, ("fgsm",), ("none", "U(16)")),
    Need("mep-12", "transfer", "last", 16, ("fgsm",), sources=("cs-8",)),
    Need("cs-8", "channels"),
)
#: What `coprobe paper` is called with; its Fig. 1 needs the runs mep-12 and fd-b200-12.
COMMAND = """
import sys
from coprobe.cli import main
from coprobe.paper import engines, runs
from tests.paper.test_engines import SLOW

if __name__ == "__main__":
    runs.SCALES["tiny"] = SLOW
    engines._LOOK_EVERY = 0.05  # so that no training ends before it hears of a signal
    line = "paper --scale tiny --runs runs --out pictures --only fig1 --jobs 2 --device cpu"
    sys.exit(main(line.split()))
"""
on_linux = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")


def slow_order(directory: Path, needs: tuple[Need, ...] = NEEDS) -> Order:
    return Order(directory, SLOW, needs)


@pytest.fixture(scope="session")
def undisturbed(once: Callable[[str, Callable[[Path], object]], Path]) -> dict[str, bytes]:
    """The files of the plan, done one after the other in one process."""
    plan = *NEEDS, Need("fd-b200-12", "history")
    return files(once("undisturbed", lambda directory: do(slow_order(directory, plan))))


def some(undisturbed: dict[str, bytes], *runs: str) -> dict[str, bytes]:
    return {name: content for name, content in undisturbed.items() if name.split("/")[0] in runs}


def wait_for(holds: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


class Killer(threading.Thread):
    """Kills one of the processes that `victims` finds as soon as the training of a run has ended its first epoch."""

    def __init__(self, run: Path, victims: Callable[[], list[int]]) -> None:
        super().__init__()
        self.run_directory = run
        self.victims = victims
        self.killed: int | None = None

    def run(self) -> None:
        wait_for((self.run_directory / "history.csv").exists)
        self.killed = self.victims()[0]
        os.kill(self.killed, signal.SIGKILL)


# What any engine has to bear.


class Failing(InlineEngine):
    """Jobs of some runs end with a reason."""

    reasons: dict[str, str | BaseException] = {}  # noqa: RUF012

    def finished(self) -> list[tuple[Job, str | None]]:
        job = self.jobs.pop()
        reason = self.reasons.get(job.run)
        if isinstance(reason, BaseException):
            raise reason
        return [(job, reason)]


def test_what_fails_does_not_keep_others_from_being_done(tmp_path: Path) -> None:
    engine = Failing(slow_order(tmp_path))
    engine.reasons = {"cs-8": "it broke"}
    ended: dict[str, str | None] = {}
    failures = work(plan_jobs(engine.order), engine, on_end=lambda job, reason: ended.update({job.name: reason}))
    assert ended == {
        "train mep-12": None,
        "measure mep-12": None,
        "train cs-8": "it broke",
        "transfer mep-12": "needs train cs-8",
        "measure cs-8": "needs train cs-8",
    }
    assert {failure.job.name: failure.reason for failure in failures} == {k: v for k, v in ended.items() if v}
    assert engine.closed


def test_an_engine_without_work_is_not_asked(tmp_path: Path) -> None:
    """Ray can't wait for nothing."""

    class Strict(Failing):
        def finished(self) -> list[tuple[Job, str | None]]:
            assert self.jobs
            return super().finished()

    engine = Strict(slow_order(tmp_path, NEEDS[:1]))
    engine.reasons = {"mep-12": "it broke"}
    assert len(work(plan_jobs(engine.order), engine)) == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_stops_the_work_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    begun: list[str] = []

    def execute(job: Job, order: Order) -> None:
        raise OSError(number, os.strerror(number), "stats/x.csv")

    monkeypatch.setattr(engines, "execute", execute)
    engine = InlineEngine(slow_order(tmp_path))
    with pytest.raises(RunError, match=r"train mep-12: stats/x\.csv: .*; make room, and the same command goes on"):
        work(plan_jobs(engine.order), engine, on_begin=lambda job: begun.append(job.name))
    assert begun == ["train mep-12"] and engine.closed


def test_a_signal_stops_the_work_between_jobs(tmp_path: Path) -> None:
    engine = Failing(slow_order(tmp_path))
    begun: list[str] = []

    def begin(job: Job) -> None:
        begun.append(job.name)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(InterruptedRunError, match="the same command goes on") as caught:
        work(plan_jobs(engine.order), engine, on_begin=begin)
    assert caught.value.exit_code == 130 and begun == ["train mep-12"] and engine.closed


def test_the_engine_is_closed_whatever_happens(tmp_path: Path) -> None:
    engine = Failing(slow_order(tmp_path))
    engine.reasons = {"mep-12": ZeroDivisionError()}
    with pytest.raises(ZeroDivisionError):
        work(plan_jobs(engine.order), engine)
    assert engine.closed


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (InputError("x.pt: is no checkpoint"), "^x.pt: is no checkpoint$"),
        (PermissionError(13, "Permission denied", "x.csv"), "^x.csv: Permission denied$"),
        (OSError("odd"), "^mep-12: odd$"),
        (ZeroDivisionError("by zero"), r"(?s)^Traceback .*ZeroDivisionError: by zero$"),
    ],
)
def test_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str) -> None:
    def execute(job: Job, order: Order) -> None:
        raise error

    monkeypatch.setattr(engines, "execute", execute)
    (failure, *_) = work(plan_jobs(slow_order(tmp_path)), InlineEngine(slow_order(tmp_path)))
    assert re.search(reason, failure.reason.strip())


def test_unknown_engines_are_refused() -> None:
    with pytest.raises(InputError, match="unknown engine 'rai'; did you mean ray"):
        engine_named("rai")


def test_ray_that_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"--engine ray needs Ray; run 'pip install coprobe\[cluster\]'"):
        engine_named("ray")(slow_order(tmp_path), 1, 0.0)


# Processes of this machine.


def test_a_killed_worker_is_replaced_and_nothing_is_lost(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    order = slow_order(tmp_path)
    seen: set[int] = set()

    def workers() -> list[int]:
        return [process.pid for process in multiprocessing.active_children() if process.pid]

    killer = Killer(tmp_path / "mep-12", workers)
    killer.start()
    engine = LocalEngine(order, 2)
    failures = work(
        plan_jobs(order),
        engine,
        on_begin=lambda job: seen.update(workers()),
        on_end=lambda job, reason: seen.update(workers()),
    )
    killer.join()
    assert failures == [] and plan_jobs(order) == []
    assert killer.killed in seen and len(seen) == 3
    assert files(tmp_path) == some(undisturbed, "mep-12", "cs-8")
    assert not set(workers()) & seen


class DeadWorkers(LocalEngine):
    """Workers that die as soon as they are asked for anything, or before."""

    hired = 0

    def _hire(self) -> engines._Worker:
        self.hired += 1
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        process = context.Process(target=os._exit, args=(3,))
        process.start()
        process.join()
        theirs.close()
        self._workers.append(engines._Worker(process, ours))
        return self._workers[-1]


@on_linux
def test_a_job_whose_workers_keep_dying_fails(tmp_path: Path) -> None:
    order = slow_order(tmp_path, (Need("mep-12", "history"),))
    engine = DeadWorkers(order, 2)
    (failure,) = work(plan_jobs(order), engine)
    assert failure.reason == "its worker died (exit code 3), 3 times" and engine.hired == 3


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """`coprobe paper` in the middle of its trainings, and its workers."""
    (tmp_path / "command.py").write_text(COMMAND)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "command.py"], cwd=tmp_path, env=environment, text=True, **pipes)
    wait_for(lambda: (tmp_path / "runs/mep-12/history.csv").exists() or process.poll() is not None)
    yield process, [pid for pid in children(process.pid) if b"spawn_main" in command_of(pid)]
    if process.poll() is None:
        process.kill()
    process.communicate()


@on_linux
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_or_killed_command_goes_on(
    tmp_path: Path,
    begun: tuple[subprocess.Popen[str], list[int]],
    undisturbed: dict[str, bytes],
    number: signal.Signals,
) -> None:
    process, workers = begun
    assert len(workers) == 2
    process.send_signal(number)
    process.wait(60)
    if number == signal.SIGTERM:
        assert process.returncode == 143 and process.stdout.read() == ""
        assert process.stderr.read().splitlines()[-1] == "coprobe: error: stopped; the same command goes on"
        assert not any(map(is_alive, workers))
    wait_for(lambda: not any(map(is_alive, workers)), 30)  # they end by themselves
    runs = tmp_path / "runs"
    assert (runs / "mep-12/resume.pt").exists()  # and save what they have
    assert not (tmp_path / "pictures").exists() and not list(tmp_path.rglob("*.tmp*"))
    do(slow_order(runs, (Need("mep-12", "history"), Need("fd-b200-12", "history"))))
    wanted = some(undisturbed, "mep-12", "fd-b200-12")
    assert files(runs) == {name: content for name, content in wanted.items() if name.endswith("history.csv")}


# Ray.


class FakeRay(ModuleType):
    """What RayEngine uses of Ray, without processes; a task is the number of its job."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.calls: list[tuple[object, ...]] = []
        self.exceptions = SimpleNamespace(RayError=ZeroDivisionError)
        self.tasks = 0

    def is_initialized(self) -> bool:
        return False

    def init(self, **how: object) -> None:
        self.calls.append(("init",))

    def remote(self, **how: object) -> Callable[[object], object]:
        self.calls.append(("remote", how))
        return lambda function: SimpleNamespace(remote=self.submit)

    def submit(self, *arguments: object) -> int:
        self.tasks += 1
        return self.tasks

    def wait(self, tasks: list[int], num_returns: int, timeout: float) -> tuple[list[int], list[int]]:
        self.calls.append(("wait", num_returns))
        return tasks[:num_returns], tasks[num_returns:]

    def get(self, task: int) -> None:
        raise ZeroDivisionError

    def cancel(self, task: int) -> None:
        self.calls.append(("cancel", task))

    def shutdown(self) -> None:
        self.calls.append(("shutdown",))


def test_ray_tasks_are_given_time_to_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    order = slow_order(tmp_path)
    engine = engine_named("ray")(order, 4, 0.25)
    assert ray.calls == [("init",), ("remote", {"num_cpus": 1, "num_gpus": 0.25, "max_retries": 2})]
    first, *others = plan_jobs(order)
    for job in (first, *others):
        assert engine.free
        engine.submit(job)
    assert engine.finished() == [(first, "its worker died, 3 times (ZeroDivisionError)")]
    ray.calls.clear()
    engine.close()
    assert ray.calls == [*(("cancel", task) for task in range(2, 6)), ("wait", 4), ("shutdown",)]


def test_a_machine_that_does_not_share_the_directory_is_told(tmp_path: Path) -> None:
    order = slow_order(tmp_path)
    reason = engines._on_cluster(plan_jobs(order)[0], order, tmp_path / "none")
    assert reason == f"{tmp_path / 'none'}: No such file or directory; the machines of the cluster must share it"


@pytest.fixture
def cluster() -> Iterator[object]:
    ray = pytest.importorskip("ray")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield ray
    ray.shutdown()


@on_linux
@pytest.mark.filterwarnings("ignore")
def test_ray_begins_the_job_of_a_killed_worker_again(
    tmp_path: Path, cluster: object, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, bytes]
) -> None:
    def tasks() -> list[int]:
        found, queue = [], [os.getpid()]
        while queue:
            queue += (own := children(queue.pop()))
            found += own
        return [pid for pid in found if command_of(pid).startswith(b"ray::_on_cluster")]

    monkeypatch.chdir(tmp_path)
    order = slow_order(Path("runs"))
    killer = Killer(tmp_path / "runs/mep-12", tasks)
    killer.start()
    failures = work(plan_jobs(order), RayEngine(order))
    killer.join()
    assert killer.killed is not None and failures == [] and plan_jobs(order) == []
    assert files(tmp_path / "runs") == some(undisturbed, "mep-12", "cs-8")
    assert cluster.is_initialized()  # type: ignore[attr-defined]
