"""How processes begin, fail and end, and what each of them has to do; what they exchange is in training's tests."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from coprobe.core.processes import ALONE, Processes, check_devices, launch, torchrun
from coprobe.errors import CoprobeError, InputError, InterruptedRunError, RunError
from tests.started import PATIENCE

pytestmark = pytest.mark.procs

CPU = torch.device("cpu")


def silent(message: str) -> None:
    raise AssertionError(f"{message!r} was said")


# What processes do; it must be found by name.


def meet(processes: Processes) -> int:
    """Sum over the processes, in which none can go on without the others."""
    assert processes.connect(CPU) == CPU
    assert processes.connect(CPU) == CPU  # once
    total = processes.sum(torch.tensor([1.0, processes.rank]))
    assert total.tolist() == [processes.world_size, sum(range(processes.world_size))]
    processes.disconnect()
    return 0 if torch.get_num_threads() == 1 else 9


def wait_for_others(processes: Processes) -> int:
    """Fail as soon as the connection to another process is lost, and say no more than that."""
    try:
        while True:
            processes.sum(torch.zeros(1))
    except RuntimeError as error:
        processes.report(f"unexpected {error}", 1, silent, expected=False)
        os._exit(1)


def last_one(act: Callable[[Processes], Any], processes: Processes) -> int:
    """The last process does something, while the others work on."""
    processes.connect(CPU)
    if processes.rank < processes.world_size - 1:
        return wait_for_others(processes)
    act(processes)
    os._exit(7)


def kill(processes: Processes) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(processes: Processes) -> int:
    """End without a word."""
    return 7


def report(message: str, code: int, expected: bool, processes: Processes) -> None:
    processes.report(message, code, silent, expected=expected)


def raise_error(processes: Processes) -> int:
    raise ZeroDivisionError("by zero")


def stop(supervisor: int, number: int, noted: bool, processes: Processes) -> int:
    """Ask the supervisor to stop as soon as all are ready for its signal."""
    came: list[int] = []
    if noted:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, lambda number, _: came.append(number))
    assert processes.store is not None
    if processes.rank:
        processes.store.set("ready", "")
    else:
        processes.store.wait(["ready"])
        os.kill(supervisor, number)
    while not came:
        time.sleep(0.01)
    processes.report("stopped and saved", 128 + came[0], silent)
    return 128 + came[0]


def test_processes_work_together_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    launch(3, meet, "")


@pytest.mark.parametrize(
    ("act", "error", "message", "code"),
    [
        (kill, RunError, "process 2 of the run ended with code -9; run it again", 1),
        (functools.partial(report, "x.pt: no such file", 2, True), InputError, "x.pt: no such file", 2),
        (functools.partial(report, "it diverged", 1, True), RunError, "it diverged", 1),
        (functools.partial(report, "unexpected odd thing", 1, False), RunError, "unexpected odd thing", 1),
        (functools.partial(report, "stopped", 143, True), InterruptedRunError, "stopped", 143),
    ],
    ids=["killed", "input", "run", "unexpected", "interrupted"],
)
def test_the_first_failure_counts(
    act: Callable[[Processes], Any], error: type[CoprobeError], message: str, code: int
) -> None:
    """Whoever loses the connection by it is ended, and does not speak."""
    with pytest.raises(error) as caught:
        launch(3, functools.partial(last_one, act), "run it again")
    assert (str(caught.value), caught.value.exit_code) == (message, code)
    assert type(caught.value) is error


def test_one_that_ends_without_a_word_is_told_by_its_exit_code() -> None:
    with pytest.raises(RunError, match="process 0 of the run ended with code 7; run it again"):
        launch(1, leave, "run it again")


def test_a_traceback_comes_through() -> None:
    with pytest.raises(mp.ProcessRaisedException, match=r"(?s)Process 0 .*in raise_error.*ZeroDivisionError: by zero"):
        launch(1, raise_error, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_once_to_all(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(InterruptedRunError, match="stopped and saved") as caught:
        launch(2, functools.partial(stop, os.getpid(), number, True), "")
    assert caught.value.exit_code == 128 + number
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_signal_that_ends_the_processes_ends_their_supervisor() -> None:
    """As a single process would end by it."""
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        with pytest.raises(RunError, match="ended with code -15"):  # this one outlives it
            launch(2, functools.partial(stop, os.getpid(), signal.SIGTERM, False), "")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM]


def test_processes_begin_in_other_threads_too() -> None:
    thread = threading.Thread(target=launch, args=(2, meet, ""))
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


# Processes that nobody supervises: torchrun's.


def test_the_first_one_says_why_they_fail_and_the_others_wait_until_it_has() -> None:
    store, said, order = dist.HashStore(), [], []
    first, second = (Processes(rank, 2, rank, store) for rank in (1, 0))

    def say(message: str) -> None:
        other.start()
        said.append(message)
        other.join(0.2)
        order.append("said")

    other = threading.Thread(target=lambda: (second.report("lost", 1, silent), order.append("heard")))
    first.report("no such file", 2, say)
    other.join(PATIENCE)
    assert said == ["no such file"] and order == ["said", "heard"]


def test_one_that_can_not_reach_the_others_is_silent() -> None:
    """The store went with the process that had it, which has spoken."""
    server: Any = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    orphan = Processes(1, 2, 1, dist.TCPStore("127.0.0.1", server.port, is_master=False))
    del server
    orphan.report("lost", 1, silent)


def test_a_single_process_says_why_it_fails() -> None:
    said: list[str] = []
    ALONE.report("no such file", 2, said.append)
    assert said == ["no such file"]


def test_what_torchrun_says_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fourth of four, on the second of two machines."""
    agent = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": agent.port, "TORCHELASTIC_USE_AGENT_STORE": True}
    for name, value in (variables | {"RANK": 3, "WORLD_SIZE": 4, "LOCAL_RANK": 1}).items():
        monkeypatch.setenv(name, str(value))
    processes = torchrun()
    assert (processes.rank, processes.world_size, processes.local_rank, processes.supervised) == (3, 4, 1, False)
    assert not processes.leads and processes.store is not None
    processes.store.set("from", "3")
    assert agent.get("from") == b"3"
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert torchrun() is ALONE and ALONE.connect(CPU) == CPU


# Devices.


def test_devices_that_can_not_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    check_devices(3, CPU)
    with pytest.raises(InputError, match="--devices 3: work is shared on cuda and cpu only, not on mps"):
        check_devices(3, torch.device("mps"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_devices(2, torch.device("cuda"))
    with pytest.raises(InputError, match="--devices 3: this machine has 2 GPUs"):
        check_devices(3, torch.device("cuda"))
    with pytest.raises(InputError, match="--device cuda:1: --devices 2 takes the first 2; write --device cuda"):
        check_devices(2, torch.device("cuda:1"))
    with pytest.raises(InputError, match="--devices 3: this machine has 2 GPUs"):
        Processes(2, 3, 2, dist.HashStore()).connect(torch.device("cuda"))
