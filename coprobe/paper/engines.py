"""Where the jobs of the plan are done: in processes of this machine, or as tasks of a Ray cluster."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coprobe.core import processes
from coprobe.errors import CoprobeError, InputError, InterruptedRunError, RunError, unknown
from coprobe.paper.jobs import Job, Order, execute
from coprobe.training.interruption import Interruption

#: How often a job is begun before a worker that dies in it is a failure.
ATTEMPTS = 3
#: What the system says of a full disk, or of a user's full share of it.
_FULL = (errno.ENOSPC, errno.EDQUOT)
#: Seconds between two looks at whether somebody wants to stop.
_LOOK_EVERY = 0.5
#: Seconds that workers have to save what they have when the work is stopped.
_TIME_TO_SAVE = 60.0


@dataclass(frozen=True)
class Failure:
    """Why a job was not done."""

    job: Job
    reason: str


class Engine(ABC):
    """Does jobs, several at a time."""

    @property
    @abstractmethod
    def free(self) -> bool:
        """Whether another job can be submitted."""

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Begin a job."""

    @abstractmethod
    def finished(self) -> list[tuple[Job, str | None]]:
        """The jobs that ended since the last look, each with the reason if it failed; waits a moment for one."""

    @abstractmethod
    def close(self) -> None:
        """Stop whatever is being done, in good order."""


def work(
    jobs: Sequence[Job],
    engine: Engine,
    *,
    on_begin: Callable[[Job], None] = lambda job: None,
    on_end: Callable[[Job, str | None], None] = lambda job, reason: None,
) -> list[Failure]:
    """Do all jobs, each after those that it needs; what can't be done does not keep the others from being done.

    Raises:
        InterruptedRunError: SIGTERM or SIGINT came; what was done is kept.
        RunError: the disk is full; likewise.
    """
    waiting = {job.name: job for job in jobs}
    running: set[str] = set()
    failures: dict[str, Failure] = {}

    def fail(job: Job, reason: str) -> None:
        if any(os.strerror(number) in reason for number in _FULL):
            raise RunError(f"{job.name}: {reason}; make room, and the same command goes on")
        failures[job.name] = Failure(job, reason)
        on_end(job, reason)

    with Interruption() as interruption:
        try:
            while waiting or running:
                for job in [job for job in waiting.values() if set(job.after) & set(failures)]:
                    fail(waiting.pop(job.name), f"needs {next(name for name in job.after if name in failures)}")
                for job in list(waiting.values()):
                    if engine.free and not set(job.after) & (set(waiting) | running):
                        engine.submit(waiting.pop(job.name))
                        running.add(job.name)
                        on_begin(job)
                for job, reason in engine.finished() if running else []:
                    running.discard(job.name)
                    if reason is not None:
                        fail(job, reason)
                    else:
                        on_end(job, None)
                if interruption.signal is not None:
                    raise InterruptedRunError("stopped; the same command goes on", interruption.signal)
        finally:
            engine.close()
    return list(failures.values())


def answer(job: Job, order: Order) -> str | None:
    """Do a job; the reason if it failed. What was not foreseen comes with its traceback.

    Raises:
        InterruptedRunError: SIGTERM or SIGINT came, and what there was to save is saved.
    """
    try:
        execute(job, order)
    except InterruptedRunError:
        raise
    except CoprobeError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or job.run}: {error.strerror or error}"
    except Exception:
        return traceback.format_exc()
    return None


@dataclass(frozen=True)
class _Worker:
    """A process, as a pool of its own, so that its death is no other's, and its number."""

    pool: ProcessPoolExecutor
    pid: Future[int]

    def send(self, number: int) -> None:
        with suppress(BrokenProcessPool, ProcessLookupError):  # it is gone already
            os.kill(self.pid.result(), number)


class LocalEngine(Engine):
    """Worker processes on this machine, each with one thread on a CPU; on a GPU they share it.

    A worker that dies is replaced and its job begun again; when this process dies, its workers save and end.

    Args:
        order: what is made.
        count: workers at a time.
    """

    def __init__(self, order: Order, count: int) -> None:
        self._order = order
        self._count = count
        self._idle: list[_Worker] = []
        self._running: dict[Future[str | None], tuple[Job, _Worker]] = {}
        self._attempts: Counter[str] = Counter()

    @property
    def free(self) -> bool:
        return len(self._running) < self._count

    def submit(self, job: Job) -> None:
        """Hand a job to an idle worker, or to a new one."""
        self._attempts[job.name] += 1
        while True:
            worker = self._idle.pop() if self._idle else self._hire()
            with suppress(BrokenProcessPool):  # it died while it was idle
                self._running[worker.pool.submit(_serve, job, self._order)] = job, worker
                return

    def finished(self) -> list[tuple[Job, str | None]]:
        """What ended; a job whose worker died is begun again, up to `ATTEMPTS` times."""
        ended: list[tuple[Job, str | None]] = []
        for future in wait(self._running, timeout=_LOOK_EVERY, return_when=FIRST_COMPLETED).done:
            job, worker = self._running.pop(future)
            try:
                ended.append((job, future.result()))
                self._idle.append(worker)
            except BrokenProcessPool:
                worker.pool.shutdown()
                if self._attempts[job.name] < ATTEMPTS:
                    self.submit(job)
                else:
                    ended.append((job, f"its worker died {ATTEMPTS} times; if memory is short, lower --jobs"))
        return ended

    def close(self) -> None:
        """Ask the workers to save and end, and see that they do."""
        busy = [worker for _, worker in self._running.values()]
        for worker in busy:
            worker.send(signal.SIGTERM)
        if wait(self._running, timeout=_TIME_TO_SAVE).not_done:
            for worker in busy:
                worker.send(signal.SIGKILL)
        for worker in (*busy, *self._idle):
            worker.pool.shutdown()
        self._running.clear()
        self._idle.clear()

    def _hire(self) -> _Worker:
        context = multiprocessing.get_context(processes.START_METHOD)
        with processes.safe_path():
            pool = ProcessPoolExecutor(1, context, _prepare, (self._order.device,))
            return _Worker(pool, pool.submit(os.getpid))


def _prepare(device: str) -> None:
    """What a worker does first."""
    import torch

    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C goes to the parent alone, which asks the workers once
        _lower_session()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if device == "cpu":
        torch.set_num_threads(1)  # results must not depend on how many jobs run


def _lower_session() -> None:
    """Lower this process's session as far as the process: Linux gives sessions equal shares, however nice they are."""
    with suppress(OSError):
        if niceness := os.nice(0):
            Path("/proc/self/autogroup").write_text(str(niceness), encoding="ascii")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _serve(job: Job, order: Order) -> str | None:
    try:
        return answer(job, order)
    except InterruptedRunError as error:
        os._exit(error.exit_code)


class RayEngine(Engine):
    """Tasks of a Ray cluster, over as many machines as it has; the directory of the runs must be shared by them.

    A task whose worker or machine dies is begun again by Ray, and goes on from what its run has saved.

    Args:
        order: what is made.
        gpus: share of a GPU that a job takes; 0 on CPUs.

    Raises:
        InputError: Ray is not installed.
    """

    def __init__(self, order: Order, gpus: float = 0.0) -> None:
        try:
            import ray
        except ImportError:
            raise InputError("--engine ray needs Ray; run 'pip install coprobe[cluster]'") from None
        self._ray: Any = ray
        self._begun = not ray.is_initialized()
        if self._begun:
            ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
        self._task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=ATTEMPTS - 1)(_on_cluster)
        self._order = order
        self._running: dict[Any, Job] = {}

    @property
    def free(self) -> bool:
        return True  # Ray keeps what has no place yet

    def submit(self, job: Job) -> None:
        """Make a job a task."""
        self._running[self._task.remote(job, self._order, Path.cwd())] = job

    def finished(self) -> list[tuple[Job, str | None]]:
        """What ended."""
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=_LOOK_EVERY)
        ended: list[tuple[Job, str | None]] = []
        for task in ready:
            job = self._running.pop(task)
            try:
                ended.append((job, self._ray.get(task)))
            except self._ray.exceptions.RayError as error:
                ended.append((job, f"its worker died {ATTEMPTS} times ({type(error).__name__})"))
        return ended

    def close(self) -> None:
        """Cancel what still runs; leave a cluster that was there before as it was."""
        for task in self._running:
            self._ray.cancel(task)
        if self._running:
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=_TIME_TO_SAVE)
        if self._begun:
            self._ray.shutdown()


def _on_cluster(job: Job, order: Order, place: Path) -> str | None:
    import torch

    if order.device == "cpu":
        torch.set_num_threads(1)
    try:
        os.chdir(place)  # where the paths of runs and data begin
    except OSError as error:
        return f"{place}: {error.strerror}; the machines of the cluster must share it"
    try:
        return answer(job, order)
    except InterruptedRunError as error:
        return str(error)


#: Engines by name, made from what is made, workers at a time, and the share of a GPU that a job takes.
ENGINES: dict[str, Callable[[Order, int, float], Engine]] = {
    "local": lambda order, count, gpus: LocalEngine(order, count),
    "ray": lambda order, count, gpus: RayEngine(order, gpus),
}


def engine_named(name: str) -> Callable[[Order, int, float], Engine]:
    """What makes the engine of this name; `InputError` for an unknown one."""
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    return ENGINES[name]
