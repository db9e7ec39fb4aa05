"""How the processes of a run begin and end: together, with one report or one reason."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from coprobe.cli import main
from coprobe.core.processes import ALONE, Processes, start
from coprobe.errors import InputError, RunError
from coprobe.training import Run
from tests.started import PATIENCE, TORCHRUN, begun
from tests.training.group import abandoned
from tests.training.runs import same, weights

#: Enough epochs for a signal to come in time.
KNOBS = "--method fgsm-mep --data digits --limit-train 40 --held-out 10 --width 4 --eps-train 16 --epochs 8 \
    --batch-size 16 --augment crop --device cpu"
DEVICES = "-m coprobe train --devices 2"


def ended(process: subprocess.Popen[str]) -> tuple[int, str, list[str]]:
    """Exit code, stdout, and the lines of stderr that tell of no epoch."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, [line for line in err.splitlines() if not line.startswith("epoch ")]


def after_an_epoch(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    assert process.stderr is not None
    assert process.stderr.readline().startswith("epoch   1/8")
    return process


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two devices."""
    out = tmp_path_factory.mktemp("devices") / "whole"
    with begun(f"{DEVICES} {KNOBS} --out {out}") as process:
        assert_complete(ended(process), out)
    return out


def assert_complete(result: tuple[int, str, list[str]], out: Path) -> None:
    """The run ended well, and one process said so and wrote the files."""
    code, report, said = result
    assert (code, [line for line in said if "did not converge" not in line]) == (0, [])
    assert report.count("PGD-10 % ") == report.count("ended by the schedule") == 1
    assert {path.name for path in out.iterdir()} == {"recipe.json", "history.csv", "checkpoint.pt", "best.pt"}
    assert list(Run(out).history["epoch"]) == [*range(1, 9)]
    assert Run(out).about()["provenance"]["processes"] == 2


def test_a_run_whose_second_process_is_killed_ends_and_goes_on_under_torchrun(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    with begun(f"{DEVICES} {KNOBS} --save-minutes 1e-6 --out {out}") as process:
        leader = after_an_epoch(process).pid
        (second,) = Path(f"/proc/{leader}/task/{leader}/children").read_text().split()
        os.kill(int(second), signal.SIGKILL)
        assert ended(process) == (
            1, "", ["coprobe: error: process 1 of the run ended with code -9; pass --resume to go on"]
        )  # fmt: skip
    with begun(f"{TORCHRUN} train --resume --out {out}") as process:
        code, report, said = ended(process)
    assert re.fullmatch(rf"{out}: resumed after \d\.00 of 8 epochs", said.pop(0))
    assert_complete((code, report, said), out)
    assert same(*(weights(run / "checkpoint.pt") for run in (out, whole)))


def test_sigterm_ends_all_processes_and_one_says_so(tmp_path: Path) -> None:
    with begun(f"{DEVICES} {KNOBS} --out {tmp_path}") as process:
        os.killpg(after_an_epoch(process).pid, signal.SIGTERM)
        code, report, said = ended(process)
    assert (code, report, len(said)) == (143, "", 1)
    assert re.match(r"coprobe: error: stopped in epoch \d and saved; 'coprobe train --resume --out", said[0])
    assert Run(tmp_path).resumable.exists()


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ("--method nope", "unknown training method 'nope'"),
        ("--stable-node Z --stable-weight 1", "unknown node 'Z'"),
        ("--batch-size 1", "too small to be shared by 2 processes"),
        ("--compile", "--compile works in one process"),
        ("--overwrite --limit-train 99999", "digits"),
    ],
)
def test_a_mistake_is_found_before_other_processes_start(
    knobs: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    code = main(shlex.split(f"train --devices 2 {KNOBS} --out {tmp_path / 'run'} {knobs}"))
    out, err = capsys.readouterr()
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_there_is_found_before_other_processes_start(
    whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    assert main(shlex.split(f"train --devices 2 {KNOBS} --out {whole}")) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_devices_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="--devices 3: work is shared on cuda and cpu only, not on mps"):
        start(3, torch.device("mps"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="--devices 3: this machine has 2 GPUs"):
        start(3, torch.device("cuda"))
    monkeypatch.setitem(sys.modules, "lightning_fabric.strategies", None)
    monkeypatch.setitem(sys.modules, "lightning.fabric.strategies", None)
    with pytest.raises(InputError, match="pip install lightning-fabric"):
        start(2, torch.device("cpu"))
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert start(2, torch.device("cpu")) == (ALONE, torch.device("cpu"))


def python(line: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-S", "-c", line])


def led(*children: subprocess.Popen[bytes]) -> tuple[Processes, list[subprocess.Popen[bytes]]]:
    """What process 0 has in hand that started these."""
    started = list(children)
    fabric = SimpleNamespace(strategy=SimpleNamespace(launcher=SimpleNamespace(procs=started)))
    return Processes(0, 1 + len(children), fabric), started


@pytest.mark.parametrize("error", [None, RunError("diverged"), RuntimeError("connection closed"), KeyboardInterrupt()])
def test_no_process_outlives_the_first(error: BaseException | None) -> None:
    child = python("import time; time.sleep(60)")
    processes, started = led(child)
    with pytest.raises(type(error)) if error else nullcontext(), processes.together():  # type: ignore[arg-type]
        if error:
            raise error
    assert child.returncode == -signal.SIGKILL
    assert started == []


def test_the_first_process_says_which_other_broke_down() -> None:
    healthy, broken = python("import time; time.sleep(60)"), python("import sys; sys.exit(3)")
    with pytest.raises(RunError, match="process 2 of the run ended with code 3"), led(healthy, broken)[0].together():
        raise RuntimeError("connection closed")
    assert healthy.returncode == -signal.SIGKILL


def test_another_process_lets_the_first_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    with pytest.raises(RunError), Processes(1, 2, object()).together():
        raise RunError("diverged")
    assert waited
    assert 1 < waited[0] < 30
    with Processes(1, 2, object()).together():
        waited.clear()
    assert not waited


def test_a_process_ends_with_the_one_that_started_it() -> None:
    alive = abandoned()
    assert alive.poll(20), "it goes on"
    with pytest.raises(EOFError):
        alive.recv()
