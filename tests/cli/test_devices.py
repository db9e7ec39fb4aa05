"""Several processes that share the images of a command: the same table as of one, said and written once."""

from __future__ import annotations

import functools
import os
import shlex
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from coprobe import cli
from coprobe.core.processes import Processes
from tests.started import FORKS, PATIENCE

pytestmark = pytest.mark.procs

#: By file: a command. Shares are uneven, a process has an image more, few, or none.
COMMANDS = {
    "activations.csv": "activations tiny.pt --limit 37 --attack pgd:3:step-size=10 --batch-size 8",
    "places.csv": "activations tiny.pt --limit 5 --attack pgd:2 --node A --node layer1.0.conv1 --node layer2.0:in",
    "single.csv": "activations tiny.pt --limit 1 --attack fgsm",
    "increments.csv": "increments tiny.pt --limit 9 --attack pgd:2 --node A --node layer2 --plain",
    "evaluate.csv": "evaluate tiny.pt --limit 21 --attacks fgsm,cw:2 --noise none --noise gauss:60 --noise-draws 2",
    "autoattack.csv": "evaluate tiny.pt --limit 35 --attacks apgd-ce --batch-size 4 --eps 2",
    "mask.csv": "mask tiny.pt --limit 19 --alpha2 0.0001 --attacks pgd:2 --eps 30",
    "transfer.csv": "transfer tiny.pt other.pt --limit 15 --attacks fgsm --noise uniform:16",
    "diagnose.csv": "diagnose tiny.pt --limit 13 --attack fgsm --precision bf16",
}  # fmt: skip
TRAIN = "train --data digits --limit-train 40 --held-out 10 --width 4 --eps-train 16 --epochs 1 --out new"
#: Commands that fail in all processes, with the exit code and what is said by one process and by two.
MISTAKES = {
    "activations tiny.pt --limit 9 --node Z": (2, "unknown node 'Z'"),
    "evaluate tiny.pt none.pt --limit 9": (2, "none.pt: no such file"),
    "evaluate - --model net.py:Nan --data digits --limit 9": (1, "not finite"),
    "evaluate tiny.pt --limit 9 --nope": (2, "No such option"),
    f"{TRAIN} --method nope": (2, "unknown training method 'nope'"),
    f"{TRAIN} --method fgsm --limit-train 99999": (2, "digits"),
    "train --resume --out run": (2, "holds no run to resume"),
}
#: Commands that only one process can do.
ALONE = {
    f"{TRAIN} --method fgsm --batch-size 1": "--batch-size 1: too small to be shared by 2 processes",
    f"{TRAIN} --method fgsm --compile": "--compile works in one process and without --co-node only; leave it out",
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
        self.passes += len(x) > 32  # more than it is looked at beforehand: in the attack first, then in the metric
        if torch.distributed.get_rank() != 1 or self.passes < 2:
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
    if sys.version_info >= (3, 11):  # no process imports a stranger's file because it lies there
        (folder / "selectors.py").write_text("raise SystemExit('somebody ran this')")
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
        members = [FORKS.Process(target=_member, args=(work, folder, rank, count)) for rank in range(count)]
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

    os.chdir(work)
    sys.dont_write_bytecode = True
    torch.set_num_threads(1)
    os.environ |= {"OMP_NUM_THREADS": "1", "COLUMNS": "80", "COPROBE_STATE": str(folder / "state")}
    lines = [f"{line} --out {folder / name}" for name, line in COMMANDS.items()]
    lines += [*MISTAKES, *ALONE] if count > 1 else [*MISTAKES]
    for number, line in enumerate(lines):
        processes = None
        if count > 1:
            # As on two machines of one process each, but that the processes meet through a file.
            processes = Processes(rank, count, 0, dist.FileStore(f"{folder}/meeting-{number}", count))
        with (folder / f"{number}-{rank}.out").open("w") as out, (folder / f"{number}-{rank}.err").open("w") as err:
            sys.stdout, sys.stderr = out, err
            code = cli.run([*shlex.split(line), "--device", "cpu"], processes)
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


@pytest.mark.parametrize("line", [*MISTAKES, *ALONE])
def test_what_is_wrong_is_said_in_a_line_by_one_process(work: Path, results: tuple[Path, Path], line: str) -> None:
    number = len(COMMANDS) + [*MISTAKES, *ALONE].index(line)
    code, message = MISTAKES.get(line) or (2, ALONE[line])
    for folder, ranks in zip(results, ((0,), (0, 1)), strict=True):
        if folder == results[0] and line in ALONE:
            continue
        codes, outs, errs = zip(*(said(folder, number, rank) for rank in ranks), strict=True)
        assert set(codes) == {code} and set(outs) == {""}
        (told,) = "".join(errs).splitlines()
        assert message in told
    assert not (work / "new").exists()


@pytest.fixture
def here(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)


def _told(folder: Path, arguments: list[str], processes: Processes) -> int:
    """As a process that a command has started, whose words go to files."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{processes.rank}.{name}", os.O_CREAT | os.O_WRONLY), number)
    return cli.take_part(arguments, processes)


def test_devices_start_processes_that_write_the_same_table(
    here: None, results: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How a command of its own starts them is in `tests/training/test_launch.py`."""
    monkeypatch.setattr(cli, "take_part", functools.partial(_told, tmp_path))
    line = f"{COMMANDS['activations.csv']} --device cpu --devices 2 --out {tmp_path / 't.csv'}"
    assert cli.main(shlex.split(line)) == 0
    assert (tmp_path / "t.csv").read_bytes() == (results[0] / "activations.csv").read_bytes()
    spoken = [(tmp_path / f"{rank}.{name}").read_text() for rank in (0, 1) for name in ("out", "err")]
    assert spoken == [said(results[0], 0, 0)[1], f"wrote {tmp_path / 't.csv'}\n", "", ""]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("false", "the model's logits are not finite (NaN or infinite), so its accuracy is undefined; "
            "check its weights and --mean/--std"),
        ("true", "process 1 of the run ended with code -9; run the command again"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_another_process_is_said_once(
    work: Path, here: None, argument: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    line = f"evaluate - --model net.py:InTheSecond --model-arg kills={argument} --data digits --limit 200 --plain"
    assert cli.main(shlex.split(f"{line} --mean 0 --std 1 --attacks fgsm --device cpu --devices 2 --out none.csv")) == 1
    assert capfd.readouterr() == ("", f"coprobe: error: {message}\n")
    assert not (work / "none.csv").exists()


def test_what_is_wrong_everywhere_is_said_once(here: None, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(shlex.split("activations none.pt --device cpu --devices 2")) == 2
    assert capfd.readouterr() == ("", "coprobe: error: none.pt: no such file; check the path\n")


def test_with_debug_the_traceback_is_shown(here: None) -> None:
    with pytest.raises(Exception, match=r"(?s)Traceback .*InputError: none.pt: no such file"):
        cli.main(shlex.split("activations none.pt --device cpu --devices 2 --debug"))
