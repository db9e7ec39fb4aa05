"""Runs that are killed, stopped, starved and lost: real signals to real processes, on a network of four channels."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import coprobe
from coprobe.core.files import write_json
from coprobe.data import load
from coprobe.errors import InputError
from coprobe.training import Recipe, Run
from coprobe.training import train as train_here
from tests.training.processes import Hit, limit_files, send, train
from tests.training.runs import MEASURED

pytestmark = pytest.mark.procs

#: Memories that are reset in epoch 3, weights averaged, the logit term by default; 9 updates per epoch.
RECIPE = Recipe(
    method="fgsm-mep", options={"reset-every": 2}, eps_train=16.0, data="digits", limit_train=72, held_out=10,
    augment="crop", width=4, epochs=3, batch_size=8, lr=0.05, average=0.9, eps_eval=16.0,
)  # fmt: skip
#: 3 to 9 updates per epoch.
SHORT = replace(RECIPE, limit_train=40, epochs=2, average=0.0, options={})
#: Regularizers that choose channels, methods with a state of their own, and a stop in epoch 4 by what epoch 3 had; with
#: the update of a resumed run after which it is killed again.
OTHERS = {
    "l-co": (6, replace(SHORT, method="fgsm", co_node="B", co_top=20.0, co_weight=1.0, co_images=20)),
    "l-co once": (6, replace(SHORT, method="n-fgsm", co_node="C", co_top=20.0, co_weight=1.0, co_images=20,
                             co_by="variance", co_select="once")),
    "cs-mep": (6, replace(SHORT, method="cs-mep", options={"gamma": 0.001}, limit_train=24, epochs=4)),
    "atas": (15, replace(SHORT, method="atas", options={"warm-up": 1, "reset-every": 1}, augment="crop-flip", epochs=4,
                         lr=0.3, schedule="constant", early_stop=True, seed=4)),
    "free": (6, replace(SHORT, method="free", options={"replays": 3}, limit_train=20, noise="added")),
}  # fmt: skip
OFTEN = ("--save-minutes", "1e-9")
KILL = send(signal.SIGKILL)


def knobs(recipe: Recipe) -> list[str]:
    """The recipe as the command line takes it."""
    arguments = []
    for name, value in recipe.to_dict().items():
        flag = "--" + name.replace("_", "-")
        if name == "options":
            arguments += [word for key in value for word in ("--option", f"{key}={value[key]}")]
        elif isinstance(value, bool):
            arguments += [flag] if value else []
        elif value is not None:
            arguments += [flag, str(value)]
    return arguments


def finish(out: Path, recipe: Recipe) -> Run:
    """Resume with nothing but --resume, to the end."""
    ended = train(out, "--resume")
    assert ended.code == 0, ended
    assert not list(out.glob(".*")), "a temporary file is left"
    assert not Run(out).resumable.exists()
    assert Run(out).recipe == recipe
    return Run(out)


def assert_same(run: Run, other: Run) -> None:
    """Bit for bit the same run, times and peak memory aside."""
    for mine, theirs in ((run.checkpoint, other.checkpoint), (run.best, other.best)):
        one, two = coprobe.load(mine), coprobe.load(theirs)
        assert one.digest == two.digest
        assert {k: v for k, v in one.metrics.items() if k not in MEASURED} == {
            k: v for k, v in two.metrics.items() if k not in MEASURED
        }
    frames = [which.history.drop(columns=MEASURED) for which in (run, other)]
    pd.testing.assert_frame_equal(*frames, check_exact=True)
    assert run.outcome == other.outcome


def assert_readable(out: Path) -> None:
    """Whatever files there are are whole."""
    run = Run(out)
    for path in (run.checkpoint, run.best):
        if path.exists():
            assert coprobe.load(path).recipe["data"] == "digits"
    if run.resumable.exists():
        assert torch.load(run.resumable, weights_only=True)["rows"] is not None
    if (out / "history.csv").exists():
        assert list(run.history["epoch"]) == list(range(1, len(run.history) + 1))
        assert run.history.notna().all().all()
    if run.begun:
        assert run.recipe.data == "digits"


def bytes_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}  # a killed one leaves it


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def whole(runs: Path) -> Run:
    """The uninterrupted run."""
    ended = train(runs / "whole", *knobs(RECIPE))
    assert ended.code == 0, ended
    return Run(runs / "whole")


@pytest.fixture(scope="session")
def _stopped(runs: Path) -> Path:
    ended = train(runs / "stopped", *knobs(RECIPE), hits=(Hit("update", 14, send(signal.SIGTERM)),))
    assert ended.code == 143, ended
    return runs / "stopped"


@pytest.fixture
def stopped(_stopped: Path, tmp_path: Path) -> Path:
    """A run that was stopped after update 5 of epoch 2."""
    return Path(shutil.copytree(_stopped, tmp_path / "run"))


def kills(seconds: float) -> Iterator[dict[str, Any]]:
    """20 kills of a run that takes so many seconds: after a random time, or right before a random change of a file."""
    moments = random.Random(1)
    for _ in range(10):
        yield {"kill_after": seconds * moments.uniform(0.02, 0.3)}
        yield {"hits": (Hit("file", moments.randint(1, 30), KILL),)}


def test_killed_at_20_moments_it_ends_as_if_nothing_had_been(whole: Run, tmp_path: Path) -> None:
    outs = [tmp_path / "0"]
    killed = half_written = 0
    for kill in kills(whole.history["seconds"].sum()):
        if Run(outs[-1]).outcome:
            outs.append(tmp_path / str(len(outs)))
        code = train(outs[-1], *knobs(RECIPE), *OFTEN, "--resume", **kill).code
        assert code in (0, -signal.SIGKILL)
        killed += code != 0
        half_written += any(outs[-1].glob(".*.tmp*"))
        assert_readable(outs[-1])
    # Not 20 on a machine so fast that a run ends before it is killed; but half of the kills know no clock.
    assert killed >= 10
    assert half_written
    for out in outs:
        assert_same(finish(out, RECIPE), whole)


def test_killed_at_any_change_of_a_file_while_it_takes_the_place_of_another_run(whole: Run, tmp_path: Path) -> None:
    other = replace(SHORT, limit_train=8, epochs=1)
    assert train(tmp_path / "other", *knobs(other)).code == 0
    left = set()
    for count in range(1, 9):
        out = Path(shutil.copytree(whole.directory, tmp_path / str(count)))
        code = train(out, *knobs(other), "--overwrite", hits=(Hit("file", count, KILL),)).code
        assert code == -signal.SIGKILL
        left |= {path.suffix for path in out.glob(".*.tmp*")}
        assert_readable(out)
        if Run(out).outcome:
            assert bytes_of(out) == bytes_of(whole.directory)
        else:
            assert train(out, *knobs(other), "--resume").code == 0
            assert_same(Run(out), Run(tmp_path / "other"))
            assert not list(out.glob(".*"))
    assert left == {".json"}  # of recipe.json, which was about to be put in its place


@pytest.mark.parametrize("name", OTHERS)
def test_methods_go_on_in_the_middle_of_an_epoch(name: str, tmp_path: Path) -> None:
    (again, recipe), killed = OTHERS[name], tmp_path / "killed"
    assert train(tmp_path / "whole", *knobs(recipe)).code == 0
    assert train(killed, *knobs(recipe), *OFTEN, hits=(Hit("update", 3, KILL),)).code == -signal.SIGKILL
    assert place(killed) == (0, 2)
    assert train(killed, "--resume", *OFTEN, hits=(Hit("update", again, KILL),)).code == -signal.SIGKILL
    assert_same(finish(killed, recipe), Run(tmp_path / "whole"))


def place(out: Path) -> tuple[int, int]:
    """The epoch and the number in it, both from 0, of the next update of an unfinished run."""
    loop = torch.load(Run(out).resumable, weights_only=True)["loop"]
    return loop["epoch"], loop["number"]


@pytest.mark.parametrize(
    ("number", "hit", "expected"),
    [
        (signal.SIGTERM, ("update", 5), (0, 5)),
        (signal.SIGINT, ("evaluation", 2), (1, 9)),
        (signal.SIGTERM, ("file", 16), (1, 1)),  # while checkpoint.pt of epoch 1 is written
    ],
)
def test_a_request_to_stop_is_heeded_after_the_update(
    number: int, hit: tuple[str, int], expected: tuple[int, int], whole: Run, tmp_path: Path
) -> None:
    out = tmp_path / "a run"
    ended = train(out, *knobs(RECIPE), hits=(Hit(*hit, send(number)),))
    assert ended.code == 128 + number
    epochs, said = ended.lines[:-1], ended.lines[-1]
    assert all(line.startswith("epoch ") for line in epochs)
    assert said == (
        f"coprobe: error: stopped in epoch {expected[0] + 1} and saved; 'coprobe train --resume --out '{out}'' goes on"
    )
    assert place(out) == expected
    assert_same(finish(out, RECIPE), whole)


def test_a_second_signal_ends_at_once(stopped: Path) -> None:
    before = bytes_of(stopped)
    ended = train(stopped, "--resume", hits=(Hit("update", 2, send(signal.SIGTERM, signal.SIGINT)),))
    assert ended.code == -signal.SIGINT
    assert bytes_of(stopped) == before


def test_a_process_of_its_own_is_stopped_by_sigterm(tmp_path: Path) -> None:
    arguments = [*knobs(replace(RECIPE, epochs=1000)), "--out", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "coprobe", "train", *arguments]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            while not (tmp_path / "run" / "history.csv").exists() and process.poll() is None:
                time.sleep(0.01)
            process.terminate()
            _, lines = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 143
    assert "and saved; 'coprobe train --resume --out" in lines.splitlines()[-1]
    assert place(tmp_path / "run") > (0, 9)
    assert_readable(tmp_path / "run")


def test_a_finished_run_is_left_as_it_is(whole: Run) -> None:
    before = bytes_of(whole.directory)
    for name in ("resume.pt", ".1-0123abcd.tmp.json"):  # as a kill at the very end leaves them
        (whole.directory / name).write_bytes(b"")
    ended = train(whole.directory, "--resume")
    assert (ended.code, ended.lines) == (0, [f"{whole.directory}: finished already, nothing to resume"])
    assert bytes_of(whole.directory) == before


@pytest.mark.parametrize("state", ["stopped", "begun", "finished", "edited"])
def test_another_recipe_is_refused(state: str, stopped: Path, whole: Run, tmp_path: Path) -> None:
    if state == "begun":
        for path in stopped.iterdir():
            if path.name != "recipe.json":
                path.unlink()
    out = whole.directory if state == "finished" else stopped
    other = {"lr": 0.2, "co_images": 2000, "seed": 1}
    if state == "edited":
        write_json(out / "recipe.json", {**Run(out).about(), **other})
        other = {}
    before = bytes_of(out)
    ended = train(out, "--resume", *[f"--{knob.replace('_', '-')}={value}" for knob, value in other.items()])
    said = f"coprobe: error: {out}: can't resume with --lr 0.2 (not 0.05), --seed 1 (not 0); leave them out"
    assert (ended.code, ended.lines) == (2, [said])
    assert bytes_of(out) == before


def test_an_unfinished_run_is_not_begun_anew_unasked(stopped: Path) -> None:
    (stopped / "checkpoint.pt").unlink()  # as in epoch 1
    before = bytes_of(stopped)
    with pytest.raises(InputError, match="holds a run already; choose another --out, or pass --resume or --overwrite"):
        train_here(RECIPE, stopped)
    assert bytes_of(stopped) == before


def test_other_images_are_refused(stopped: Path) -> None:
    before = bytes_of(stopped)
    digits = load("digits", "train")
    with pytest.raises(InputError, match=r"digits: other training images than when .* began"):
        train_here(RECIPE, stopped, data=replace(digits, images=digits.images ^ 1), resume=True)
    assert bytes_of(stopped) == before


def _flip_a_bit(state: bytes) -> bytes:
    middle = len(state) // 2  # in a tensor
    return state[:middle] + bytes([state[middle] ^ 1]) + state[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: b"",
        lambda state: state[:1000],
        lambda state: state[:-1],
        lambda state: bytes(len(state)),
        lambda state: b"no state at all",
        _flip_a_bit,
    ],
    ids=["empty", "cut early", "cut late", "zeros", "text", "a bit"],
)
def test_a_damaged_state_is_refused_by_name(damage: Callable[[bytes], bytes], stopped: Path) -> None:
    state = stopped / "resume.pt"
    state.write_bytes(damage(state.read_bytes()))
    before = bytes_of(stopped)
    with pytest.raises(InputError) as caught:
        train_here(RECIPE, stopped, resume=True)
    assert str(caught.value) == f"{state}: can't be read; start again with --overwrite"
    assert bytes_of(stopped) == before


@pytest.mark.parametrize(
    ("size", "options", "unchanged"),
    [
        (4096, (), {"checkpoint.pt", "resume.pt", "history.csv"}),  # the head of a checkpoint can't be written
        (100_000, (), {"checkpoint.pt", "resume.pt", "history.csv"}),  # nor its middle
        (300_000, OFTEN, {"checkpoint.pt", "resume.pt", "history.csv", "best.pt"}),  # nor a state
    ],
    ids=["head", "middle", "state"],
)
def test_a_full_disk_leaves_what_was_there(
    size: int, options: tuple[str, ...], unchanged: set[str], stopped: Path, whole: Run
) -> None:
    before = bytes_of(stopped)
    ended = train(stopped, "--resume", *options, hits=(Hit("update", 1, limit_files(size)),))
    assert ended.code == 1
    named = ended.lines[-1].removeprefix(f"coprobe: error: {stopped}/")
    assert named.endswith(f": File too large; once that is mended, 'coprobe train --resume --out {stopped}' goes on")
    assert named.split(":")[0] in ("best.pt", "checkpoint.pt", "resume.pt")
    after = bytes_of(stopped)
    assert {name: after[name] for name in unchanged} == {name: before[name] for name in unchanged}
    assert set(after) == set(before)
    assert_readable(stopped)
    if options:
        assert_same(finish(stopped, RECIPE), whole)


@pytest.fixture
def full_disk(stopped: Path, tmp_path: Path) -> Iterator[Path]:
    """The stopped run on a file system with room for another checkpoint, but not for another state."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    size = sum(path.stat().st_size for path in stopped.iterdir()) + 500_000
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(mounted)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield Path(shutil.copytree(stopped, mounted / "run"))
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_a_file_system_without_room_leaves_what_was_there(full_disk: Path) -> None:
    before = bytes_of(full_disk)
    ended = train(full_disk, "--resume", *OFTEN)
    assert ended.code == 1
    assert ended.lines[-1].startswith(f"coprobe: error: {full_disk}/resume.pt: No space left on device; once that is")
    assert bytes_of(full_disk) == before


@pytest.mark.parametrize(
    ("decay", "said"),
    [
        # Weights and their product over the layers grow with every update; the one overflows in training, ...
        (80.0, r"training diverged in epoch (\d) \(its losses or weights are not finite\); {kept}; lower --lr"),
        # ... the other in evaluation mode, at a node or at the end.
        (120.0, r"epoch (\d) can't be measured: FGSM: .* are not finite .*; {kept}; lower --lr"),
    ],
    ids=["in training", "in evaluation"],
)
def test_divergence_keeps_the_epochs_before(decay: float, said: str, tmp_path: Path) -> None:
    recipe = replace(SHORT, method="fgsm", schedule="constant", momentum=0.0, weight_decay=decay, epochs=8)
    out = tmp_path / "run"
    ended = train(out, *knobs(recipe), *OFTEN)
    assert ended.code == 1
    kept = "the checkpoints of the epochs before are kept"
    found = re.fullmatch("coprobe: error: " + said.format(kept=kept), ended.lines[-1])
    assert found, ended.lines
    epoch = int(found[1])
    assert epoch >= 2
    assert len(ended.lines) == epoch
    assert list(Run(out).history["epoch"]) == list(range(1, epoch))
    assert coprobe.load(out).metrics["epoch"] == epoch - 1
    assert_readable(out)
    model = torch.load(Run(out).resumable, weights_only=True)["loop"]["model"]
    assert all(tensor.isfinite().all() for tensor in model.values())
