"""How the processes of a training begin and end: together, with one report or one reason."""

from __future__ import annotations

import functools
import os
import re
import shlex
import signal
import sys
from pathlib import Path

import pytest

from coprobe.cli import take_part
from coprobe.core.processes import Processes, launch
from coprobe.errors import InterruptedRunError
from coprobe.training import Run
from tests.started import TORCHRUN, begun, ended
from tests.training.runs import same, weights

pytestmark = pytest.mark.procs

KNOBS = "--method fgsm-mep --data digits --limit-train 40 --held-out 10 --width 4 --eps-train 16 --epochs 5 \
    --batch-size 16 --augment crop --device cpu"


def told(line: str, folder: Path, processes: Processes) -> int:
    """Run a command line as one of several processes; what it says goes to files."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{processes.rank}.{name}", os.O_CREAT | os.O_WRONLY), number)
    return take_part(shlex.split(line), processes)


def interrupted(line: str, folder: Path, supervisor: int, processes: Processes) -> int:
    """As `told`; the supervisor is stopped after the third update."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    updates: list[None] = []

    def count(*_: object) -> None:
        updates.append(None)
        if len(updates) == 3 and processes.leads:
            os.kill(supervisor, signal.SIGTERM)

    register_optimizer_step_post_hook(count)
    return told(line, folder, processes)


def assert_complete(code: int, report: str, said: list[str], out: Path) -> None:
    """The run ended well, and one process said so and wrote the files."""
    assert (code, [line for line in said if "did not converge" not in line]) == (0, [])
    assert report.count("PGD-10 % ") == report.count("ended by the schedule") == 1
    assert {path.name for path in out.iterdir()} == {"recipe.json", "history.csv", "checkpoint.pt", "best.pt"}
    assert list(Run(out).history["epoch"]) == [*range(1, 6)]
    assert Run(out).about()["provenance"]["processes"] == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere nothing ends with its parent")
def test_a_run_whose_supervisor_is_killed_ends_and_goes_on_under_torchrun(tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"
    launch(2, functools.partial(told, f"train {KNOBS} --out {whole}", tmp_path), "")
    said = [line for line in (tmp_path / "0.err").read_text().splitlines() if not line.startswith("epoch ")]
    assert_complete(0, (tmp_path / "0.out").read_text(), said, whole)
    assert (tmp_path / "1.out").read_text() == (tmp_path / "1.err").read_text() == ""

    if sys.version_info >= (3, 11):  # no process imports a stranger's file because it lies there
        (tmp_path / "selectors.py").write_text("raise SystemExit('somebody ran this')")
    command = f"{Path(sys.executable).with_name('coprobe')} train --devices 2"
    with begun(f"{command} {KNOBS} --save-minutes 1e-6 --out {out}", tmp_path) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("epoch   1/5")
        process.kill()
        assert ended(process)[:2] == (-signal.SIGKILL, "")  # nobody is left that could write
    assert not Run(out).outcome
    with begun(f"{TORCHRUN} train --resume --out {out}") as process:
        code, report, said = ended(process)
    assert re.fullmatch(rf"{out}: resumed after \d\.\d\d of 5 epochs", said.pop(0))
    assert_complete(code, report, said, out)
    assert same(*(weights(run / "checkpoint.pt") for run in (out, whole)))


def test_sigterm_ends_all_processes_and_one_says_so(tmp_path: Path) -> None:
    line = f"train {KNOBS} --epochs 9999 --out {tmp_path / 'run'}"
    with pytest.raises(InterruptedRunError) as caught:
        launch(2, functools.partial(interrupted, line, tmp_path, os.getpid()), "")
    assert caught.value.exit_code == 143
    assert re.match(r"stopped in epoch \d+ and saved; 'coprobe train --resume --out", str(caught.value))
    assert Run(tmp_path / "run").resumable.exists()
    assert "error" not in (tmp_path / "0.err").read_text() + (tmp_path / "1.err").read_text()
