"""Several processes that share the images of a command: the same table as of one, said and written once."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.started import PATIENCE, TORCHRUN, begun

#: Forks from a server that has imported what the commands need: 20 ms, where a new interpreter takes seconds.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["coprobe.probe", "coprobe.paper.own", "lightning_fabric", "sklearn.datasets"])

#: By file: a command. Shares are uneven, a process has an image more, few, or none.
COMMANDS = {
    "activations.csv": "activations tiny.pt --limit 37 --attack pgd:3 --batch-size 8",
    "places.csv": "activations tiny.pt --limit 5 --node A --node layer1.0.conv1 --node layer2.0:in",
    "single.csv": "activations tiny.pt --limit 1 --attack fgsm",
    "increments.csv": "increments tiny.pt --limit 9 --attack pgd:2 --node A --node layer2 --plain",
    "evaluate.csv": "evaluate tiny.pt --limit 21 --attacks fgsm,cw:2 --noise none --noise gauss:60 --noise-draws 2",
    "autoattack.csv": "evaluate tiny.pt --limit 35 --attacks apgd-ce --batch-size 4 --eps 2",
    "mask.csv": "mask tiny.pt --limit 19 --alpha2 0.0001 --attacks pgd:2 --eps 30",
    "transfer.csv": "transfer tiny.pt other.pt --limit 15 --attacks fgsm --noise uniform:16",
    "diagnose.csv": "diagnose tiny.pt --limit 13 --attack fgsm --precision bf16",
}  # fmt: skip
#: Commands that fail in all processes, with the exit code and what is said.
MISTAKES = {
    "activations tiny.pt --limit 9 --node Z": (2, "unknown node 'Z'"),
    "evaluate tiny.pt none.pt --limit 9": (2, "none.pt: no such file"),
    "evaluate - --model net.py:Nan --data digits --limit 9": (1, "not finite"),
}

NETWORKS = """
import os, signal
import torch

class Nan(torch.nn.Linear):
    def __init__(self):
        super().__init__(1024, 10)

    def forward(self, x):
        return super().forward(x.flatten(1)) * float("nan")

class InTheSecond(torch.nn.Linear):
    def __init__(self, kills=False):
        super().__init__(1024, 10)
        self.kills, self.passes = kills, 0

    def forward(self, x):
        self.passes += 1
        if os.environ.get("LOCAL_RANK") != "1" or self.passes < 12:
            return super().forward(x.flatten(1))
        if self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x.flatten(1)) * float("nan")
"""


@pytest.fixture(scope="session")
def work(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `tiny.pt` and `other.pt`."""
    from coprobe.checkpoint import Checkpoint
    from coprobe.models import Classifier, build

    folder = tmp_path_factory.mktemp("devices")
    (folder / "tiny.pt").write_bytes((store / "tiny.pt").read_bytes())
    (folder / "net.py").write_text(NETWORKS)
    torch.manual_seed(1)
    arguments = {"width": 2, "num_classes": 10, "in_channels": 1}
    other = Classifier(build("resnet18", **arguments)).eval()
    Checkpoint(other, "resnet18", arguments, {"data": "digits"}, {"epoch": 1}, (1, 32, 32)).save(folder / "other.pt")
    return folder


@pytest.fixture(scope="session")
def results(work: Path) -> tuple[Path, Path]:
    """Where one process has written the tables of `COMMANDS`, and where two have, with what they said."""
    folders = work / "one", work / "two"
    for folder, count in zip(folders, (1, 2), strict=True):
        folder.mkdir()
        members = [_FORKS.Process(target=_member, args=(work, folder, rank, count)) for rank in range(count)]
        for member in members:
            member.start()
        try:
            for member in members:
                member.join(PATIENCE)
            assert [member.exitcode for member in members] == [0] * count, "a process hangs or failed"
        finally:
            for member in members:
                member.kill()
                member.join()
    return folders


def _member(work: Path, folder: Path, rank: int, count: int) -> None:
    """Run all commands, one after the other, as a process of a group; exit codes and what is said go to files."""
    import torch.distributed as dist

    import coprobe.cli as cli
    import coprobe.core.processes as processes

    os.chdir(work)
    sys.dont_write_bytecode = True
    torch.set_num_threads(1)
    processes._PATIENCE = cli._PATIENCE = 0
    os.environ |= {"OMP_NUM_THREADS": "1", "COLUMNS": "80", "COPROBE_STATE": str(folder / "state")}
    os.environ.pop("COPROBE_LEADER", None)
    if count > 1:
        os.environ |= {"WORLD_SIZE": str(count), "LOCAL_RANK": str(rank), "RANK": str(rank)}
    lines = [f"{line} --out {folder / name}" for name, line in COMMANDS.items()] + [*MISTAKES]
    for number, line in enumerate(lines):
        if count > 1:
            meeting = f"file://{folder}/meeting-{number}"
            dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
        with (folder / f"{number}-{rank}.out").open("w") as out, (folder / f"{number}-{rank}.err").open("w") as err:
            sys.stdout, sys.stderr = out, err
            code = cli._run([*shlex.split(line), "--device", "cpu", "--devices", str(count)])
        if dist.is_initialized():  # as where a process ends
            dist.destroy_process_group()
        (folder / f"{number}-{rank}.code").write_text(str(code))


def said(folder: Path, number: int, rank: int) -> tuple[int, str, str]:
    code, out, err = ((folder / f"{number}-{rank}.{what}").read_text() for what in ("code", "out", "err"))
    return int(code), out, err


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_of_two_processes_is_that_of_one(results: tuple[Path, Path], name: str) -> None:
    one, two = results
    number = list(COMMANDS).index(name)
    expected, found = said(one, number, 0), said(two, number, 0)
    assert (expected[0], found[0]) == (0, 0), found[2]
    assert len(pd.read_csv(one / name)) > 1
    assert (two / name).read_bytes() == (one / name).read_bytes()
    assert found[1] == expected[1] and len(found[1].splitlines()) > 4
    assert found[2].replace("/two/", "/one/") == expected[2]
    assert said(two, number, 1) == (0, "", "")


@pytest.mark.parametrize("line", MISTAKES)
def test_what_is_wrong_is_said_in_a_line(results: tuple[Path, Path], line: str) -> None:
    number = len(COMMANDS) + list(MISTAKES).index(line)
    code, message = MISTAKES[line]
    for folder in results:
        found, out, err = said(folder, number, 0)
        assert (found, out) == (code, "") and message in err and len(err.splitlines()) == 1
    assert said(results[1], number, 1)[0] == code


def ended(work: Path, line: str) -> tuple[int, str, str]:
    with begun(line, work) as process:
        out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out, err


@pytest.mark.parametrize("how", ["-m coprobe {} --devices 2", f"{TORCHRUN} {{}}"])
def test_processes_that_are_started(work: Path, results: tuple[Path, Path], how: str, tmp_path: Path) -> None:
    line = f"{how.format(COMMANDS['activations.csv'])} --device cpu --out {tmp_path / 't.csv'}"
    assert ended(work, line) == (0, said(results[0], 0, 0)[1], f"wrote {tmp_path / 't.csv'}\n")
    assert (tmp_path / "t.csv").read_bytes() == (results[0] / "activations.csv").read_bytes()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("false", "the model's logits are not finite (NaN or infinite), so its accuracy is undefined; "
            "check its weights and --mean/--std"),
        ("true", "process 1 of the run ended with code -9; run the command again"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_another_process_is_said_once(work: Path, argument: str, message: str) -> None:
    line = f"evaluate - --model net.py:InTheSecond --model-arg kills={argument} --data digits --limit 200 --plain"
    more = "--attacks fgsm --device cpu --devices 2 --out none.csv"
    assert ended(work, f"-m coprobe {line} {more}") == (1, "", f"coprobe: error: {message}\n")
    assert not (work / "none.csv").exists()


def test_under_torchrun_a_mistake_is_said_once(work: Path) -> None:
    code, out, err = ended(work, f"{TORCHRUN} activations none.pt")
    assert (code, out) == (1, "")  # of torchrun
    assert err.count("coprobe: error: none.pt: no such file; check the path") == 1
    assert err.count("coprobe: error") == 1
