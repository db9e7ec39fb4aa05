"""Engines: whatever happens to workers, to their parent or to the disk, the files are the same in the end."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from coprobe.errors import InputError, InterruptedRunError, RunError
from coprobe.paper import engines
from coprobe.paper.engines import LocalEngine, RayEngine, engine_named, work
from coprobe.paper.jobs import Job, Order, plan_jobs
from coprobe.paper.needs import Need
from tests.paper.disturbed import await_sigterm, die, die_once, disturbed
from tests.paper.tiny import InlineEngine, do, files, order_for
from tests.started import FORKS, PATIENCE, ROOT

pytestmark = pytest.mark.procs
on_linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")

NEEDS = (
    Need("mep-12", "accuracy", "last", 16, ("fgsm",), ("none", "U(16)")),
    Need("mep-12", "transfer", "last", 16, ("fgsm",), sources=("cs-8",)),
    Need("cs-8", "channels"),
)


@pytest.fixture(scope="session")
def undisturbed(once: Callable[[str, Callable[[Path], object]], Path]) -> dict[str, bytes]:
    """The files of the plan, done one after the other in one process."""
    plan = *NEEDS, Need("fd-b200-12", "history")
    return files(once("undisturbed", lambda directory: do(order_for(directory, plan))))


def some(undisturbed: dict[str, bytes], *runs: str) -> dict[str, bytes]:
    return {name: content for name, content in undisturbed.items() if name.split("/")[0] in runs}


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
    engine = Failing(order_for(tmp_path, NEEDS))
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

    engine = Strict(order_for(tmp_path, NEEDS[:1]))
    engine.reasons = {"mep-12": "it broke"}
    assert len(work(plan_jobs(engine.order), engine)) == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_stops_the_work_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    begun: list[str] = []

    def execute(job: Job, order: Order) -> None:
        raise OSError(number, os.strerror(number), "stats/x.csv")

    monkeypatch.setattr(engines, "execute", execute)
    engine = InlineEngine(order_for(tmp_path, NEEDS))
    with pytest.raises(RunError, match=r"train mep-12: stats/x\.csv: .*; make room, and the same command goes on"):
        work(plan_jobs(engine.order), engine, on_begin=lambda job: begun.append(job.name))
    assert begun == ["train mep-12"] and engine.closed


def test_a_signal_stops_the_work_between_jobs(tmp_path: Path) -> None:
    engine = Failing(order_for(tmp_path, NEEDS))
    begun: list[str] = []

    def begin(job: Job) -> None:
        begun.append(job.name)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(InterruptedRunError, match="the same command goes on") as caught:
        work(plan_jobs(engine.order), engine, on_begin=begin)
    assert caught.value.exit_code == 130 and begun == ["train mep-12"] and engine.closed


def test_the_engine_is_closed_whatever_happens(tmp_path: Path) -> None:
    engine = Failing(order_for(tmp_path, NEEDS))
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
    (failure, *_) = work(plan_jobs(order_for(tmp_path, NEEDS)), InlineEngine(order_for(tmp_path, NEEDS)))
    assert re.search(reason, failure.reason.strip())


def test_unknown_engines_are_refused() -> None:
    with pytest.raises(InputError, match="unknown engine 'rai'; did you mean ray"):
        engine_named("rai")


def test_ray_that_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"--engine ray needs Ray; run 'pip install coprobe\[cluster\]'"):
        engine_named("ray")(order_for(tmp_path, NEEDS), 1, 0.0)


# Processes of this machine.


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Where disturbed trainings leave word."""
    return tmp_path / "notes"


def test_a_killed_worker_is_replaced_and_nothing_is_lost(
    tmp_path: Path, notes: Path, undisturbed: dict[str, bytes]
) -> None:
    order = Order(tmp_path / "runs", disturbed(die_once, notes), NEEDS)
    assert work(plan_jobs(order), LocalEngine(order, 2)) == []
    assert (notes / "dead").exists() and plan_jobs(order) == []
    assert files(tmp_path / "runs") == some(undisturbed, "mep-12", "cs-8")
    assert multiprocessing.active_children() == []


def test_a_job_whose_workers_keep_dying_fails(tmp_path: Path, notes: Path) -> None:
    order = Order(tmp_path / "runs", disturbed(die, notes, epoch=1), (Need("mep-12", "history"),))
    (failure,) = work(plan_jobs(order), LocalEngine(order, 2))
    assert failure.reason == "its worker died 3 times; if memory is short, lower --jobs"
    assert len(list(notes.iterdir())) == 3


def test_a_worker_that_died_while_it_was_idle_is_replaced(tmp_path: Path, notes: Path) -> None:
    order = order_for(tmp_path / "runs", (Need("mep-12", "history"), Need("cs-8", "history")))
    first, second = plan_jobs(order)
    engine, ended = LocalEngine(order, 1), list[tuple[Job, str | None]]()
    engine.submit(first)
    while not ended:
        ended += engine.finished()
    (worker,) = multiprocessing.active_children()
    worker.kill()
    worker.join()
    engine.submit(second)
    while len(ended) < 2:
        ended += engine.finished()
    engine.close()
    assert ended == [(first, None), (second, None)] and plan_jobs(order) == []


def session_of_a_nice_worker(folder: Path) -> None:
    """Write down what share of the machine the session of a worker gets, if this process is nice."""
    os.nice(7)
    worker = LocalEngine(order_for(folder, ()), 1)._hire()
    (folder / "share").write_text(worker.pool.submit(Path("/proc/self/autogroup").read_text).result())
    worker.pool.shutdown()


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="the system does not share by sessions")
def test_a_nice_worker_has_a_nice_session(tmp_path: Path) -> None:
    process = FORKS.Process(target=session_of_a_nice_worker, args=(tmp_path,))
    process.start()
    process.join()
    share = (tmp_path / "share").read_text()
    assert share.endswith(f" nice {min(19, os.nice(0) + 7)}\n")
    assert share != Path("/proc/self/autogroup").read_text()  # which is empty where nobody ever began a session


def paper(folder: Path, notes: Path) -> None:
    """`coprobe paper` with two workers, whose trainings wait for SIGTERM; its Fig. 1 needs mep-12 and fd-b200-12."""
    from coprobe.cli import main
    from coprobe.paper import runs

    runs.SCALES["tiny"] = disturbed(await_sigterm, notes, epoch=1)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY), number)
    os.environ["PYTHONPATH"] = str(ROOT)
    os.chdir(folder)
    line = "paper --scale tiny --runs runs --out pictures --only fig1 --jobs 2 --device cpu"
    sys.exit(main(shlex.split(line)))


def wait_for(holds: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@on_linux
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_or_killed_command_goes_on(
    tmp_path: Path, notes: Path, undisturbed: dict[str, bytes], number: signal.Signals
) -> None:
    notes.mkdir()
    process = FORKS.Process(target=paper, args=(tmp_path, notes))
    process.start()
    try:
        wait_for(lambda: len(list(notes.iterdir())) == 2 or not process.is_alive())
        workers = [int(path.name) for path in notes.iterdir()]
        assert len(workers) == 2, (tmp_path / "err").read_text()
        os.kill(process.pid or 0, number)
        process.join(PATIENCE)
    finally:
        process.kill()
    if number == signal.SIGTERM:
        assert process.exitcode == 143 and (tmp_path / "out").read_text() == ""
        assert (tmp_path / "err").read_text().splitlines()[-1] == "coprobe: error: stopped; the same command goes on"
        assert not any(map(is_alive, workers))
    wait_for(lambda: not any(map(is_alive, workers)))  # they end by themselves
    runs = tmp_path / "runs"
    assert (runs / "mep-12/resume.pt").exists()  # and save what they have
    assert not (tmp_path / "pictures").exists() and not list(tmp_path.rglob("*.tmp*"))
    do(order_for(runs, (Need("mep-12", "history"), Need("fd-b200-12", "history"))))
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
    order = order_for(tmp_path, NEEDS)
    engine = engine_named("ray")(order, 4, 0.25)
    assert ray.calls == [("init",), ("remote", {"num_cpus": 1, "num_gpus": 0.25, "max_retries": 2})]
    first, *others = plan_jobs(order)
    for job in (first, *others):
        assert engine.free
        engine.submit(job)
    assert engine.finished() == [(first, "its worker died 3 times (ZeroDivisionError)")]
    ray.calls.clear()
    engine.close()
    assert ray.calls == [*(("cancel", task) for task in range(2, 6)), ("wait", 4), ("shutdown",)]


def test_a_machine_that_does_not_share_the_directory_is_told(tmp_path: Path) -> None:
    order = order_for(tmp_path, NEEDS)
    reason = engines._on_cluster(plan_jobs(order)[0], order, tmp_path / "none")
    assert reason == f"{tmp_path / 'none'}: No such file or directory; the machines of the cluster must share it"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else 15, at which they wait for whatever else is tested
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield ray
    ray.shutdown()


@pytest.mark.filterwarnings("ignore")
def test_ray_begins_the_job_of_a_killed_worker_again(
    tmp_path: Path, cluster: object, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    order = Order(Path("runs"), disturbed(die_once, tmp_path / "notes"), NEEDS)
    assert work(plan_jobs(order), RayEngine(order)) == []
    assert (tmp_path / "notes/dead").exists() and plan_jobs(order) == []
    assert files(tmp_path / "runs") == some(undisturbed, "mep-12", "cs-8")
    assert cluster.is_initialized()  # type: ignore[attr-defined]
