"""`coprobe train`: its options, where knobs come from, and what it says and writes on the way."""

import dataclasses
import json
import os
import re
import shutil
from contextlib import contextmanager

import pandas as pd
import pytest
import torch
from rich.cells import cell_len

from coprobe.checkpoint import load
from coprobe.core.files import exclusive
from coprobe.errors import RunError
from coprobe.training import PRESETS, Recipe, Run
from coprobe.training.recipe import flag
from coprobe.training.run import RUN_FILES

KNOBS = {knob.name: knob for knob in dataclasses.fields(Recipe)}
#: A run of a second or less, into the directory `new`.
LINE = (
    "train --data digits --limit-train 64 --held-out 20 --width 4 --batch-size 32 --epochs 2 --eps-train 26 "
    "--augment none --out new"
)


@pytest.fixture
def asked(monkeypatch):
    """The recipes that `train` was asked to follow; nothing is trained."""
    recipes = []

    def note(recipe, *args, **settings):
        recipes.append(recipe)
        raise RunError("that is all")

    monkeypatch.setattr("coprobe.training.trainer.train", note)
    return recipes


def helped(coprobe):
    """Option to what `--help` says of it, on one line."""
    text = coprobe("train --help").out
    _, *paragraphs = re.split(r"\n  (?=--)", text.partition("\nRun:")[2])
    return {one.split()[0]: " ".join(one.split()) for one in paragraphs}


@pytest.mark.parametrize("name", KNOBS)
def test_every_knob_is_an_option_that_says_its_default(coprobe, name):
    knob = KNOBS[name]
    said = helped(coprobe)[flag(name)]
    if name == "options":
        assert "KEY=VALUE" in said
    elif knob.default is None:
        assert "unset" in said
    elif knob.type == "bool":
        assert flag(f"no_{name}") in said and "[default: off]" in said and knob.default is False
    else:
        shown = re.search(r"\[default: (.*)\]", said)[1]
        assert (float(shown) if isinstance(knob.default, float) else type(knob.default)(shown)) == knob.default
    for choice in knob.metadata.get("choices", ()):
        assert choice in said


def test_the_options_stand_in_groups(coprobe):
    text = coprobe("train --help").out
    groups = ["Run", *dict.fromkeys(knob.metadata["group"] for knob in KNOBS.values()), "Other options"]
    assert re.findall(r"^(\S.*):$", text, re.MULTILINE) == groups
    assert max(map(cell_len, text.partition("\nRun:")[2].splitlines())) <= 80


def test_options_come_before_the_recipe_file_and_that_before_the_preset(here, coprobe, asked):
    (here / "my.json").write_text(json.dumps({"lr": 0.3, "seed": 4, "early_stop": True, "milestones": [2, 9]}))
    coprobe(
        "train --preset paper --recipe my.json --data digits --seed 7 --no-early-stop --eps-train 8/255 --out new "
        "--method fgsm-mep --option label-factor=0.5 --option reset-every=10"
    )
    (recipe,) = asked
    changed = {key: value for key, value in recipe.to_dict().items() if value != Recipe().to_dict()[key]}
    assert changed == {
        "method": "fgsm-mep", "options": {"label-factor": 0.5, "reset-every": 10}, "data": "digits",
        "epochs": 110, "schedule": "step", "lr": 0.3, "milestones": (2, 9), "seed": 7,
    }  # fmt: skip


def test_defaults_hide_nothing_of_a_file(here, coprobe, asked):
    """An option that was not given does not count, though it has a default."""
    values = {
        "method": "fgsm-rs", "eps_train": 3.0, "data": "digits", "held_out": 11, "epochs": 7, "co_node": "B",
        "co_top": 3.0, "stable_node": "C", "stable_weight": 2.0, "stop_at_collapse": True, "limit_train": 50,
    }  # fmt: skip
    (here / "my.json").write_text(json.dumps(values))
    coprobe("train --recipe my.json --out new")
    assert asked == [Recipe(**values)]
    coprobe("train --recipe my.json --limit-train all --out new")
    assert asked[1].limit_train is None


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_taken_by_name(here, coprobe, asked, preset):
    coprobe(f"train --preset {preset} --data digits --out new")
    assert asked == [Recipe.from_dict({**PRESETS[preset], "data": "digits"})]


@pytest.mark.slow
def test_the_recipe_of_a_run_makes_it_again_bit_for_bit(here, coprobe):
    more = "--method fgsm-mep --option label-factor=0.7 --schedule step --milestones 1 --average 0.9 --seed 3"
    assert coprobe(f"{LINE} {more} --stable-node B --stable-weight 2 --noise both").code == 0
    assert coprobe("train --recipe new/recipe.json --out again").code == 0
    first, second = Run(here / "new"), Run(here / "again")
    assert first.recipe == second.recipe
    for name in ("checkpoint.pt", "best.pt"):
        one, other = (load(run.directory / name).model.network.state_dict() for run in (first, second))
        assert all(torch.equal(one[key], other[key]) for key in one)
    columns = ["train_loss", "stable", "logit", "clean", "pgd10", "v_act_A"]
    pd.testing.assert_frame_equal(first.history[columns], second.history[columns])


@pytest.mark.slow
def test_a_row_per_epoch_on_stderr_and_json_on_stdout(here, coprobe):
    result = coprobe(f"{LINE} --json --plot history.png")
    assert "wrote history.png\n" in result.err and (here / "history.png").exists()
    given = json.loads(result.out)
    history = pd.read_csv("new/history.csv")
    rows = given["rows"]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[1]["train_loss"] == pytest.approx(history["train_loss"][1], rel=1e-12)
    about = json.loads((here / "new" / "recipe.json").read_text())
    assert given["outcome"] == about["outcome"] and given["recipe"] == Run(here / "new").recipe.to_dict()
    assert given["provenance"].items() >= about["provenance"].items()
    lines = [line for line in result.err.splitlines() if line.startswith("epoch ")]
    for line, row in zip(lines, rows, strict=True):
        percents = [f"{100 * row[column]:.1f}" for column in ("clean", "fgsm", "pgd10")]
        expected = "epoch   {}/2  loss {:.3f}  clean {}  FGSM {}  PGD-10 {}  {:.1f} s"
        assert line == expected.format(row["epoch"], row["train_loss"], *percents, row["seconds"])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fgsm", "free"])
def test_progress_ends_when_the_work_does(here, coprobe, monkeypatch, method):
    told, totals = [], []

    @contextmanager
    def note(what, images):
        totals.append(images)
        yield lambda done, now=None: told.append((done, now))

    monkeypatch.setattr("coprobe.cli.commands.train.progress", note)
    assert coprobe(f"{LINE} --epochs 1 --method {method}").code == 0
    assert sum(done for done, _ in told) == totals[0]


@pytest.mark.slow
def test_the_live_line(here, coprobe, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "160")
    colours = re.compile(r"\x1b\[[\d;]*m")
    *_, last = [line for line in colours.sub("", coprobe(LINE).err).splitlines() if "images/s" in line]
    accuracies = r"clean \d+\.\d  FGSM \d+\.\d  PGD-10 \d+\.\d"
    assert re.search(rf"epoch 2/2  {accuracies} \S+ 128/128 +\d+ images/s 0:00:00", last)


@pytest.mark.slow
def test_events_for_tensorboard_are_the_history(here, coprobe):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for more in ("--epochs 1", "--overwrite"):
        assert coprobe(f"{LINE} --tensorboard {more}").code == 0
    events = accumulators.EventAccumulator(str(here / "new" / "events")).Reload()
    history = pd.read_csv(here / "new" / "history.csv")
    assert set(events.Tags()["scalars"]) == set(history.columns) - {"epoch"}
    for column in set(history.columns) - {"epoch"}:
        points = events.Scalars(column)
        assert [point.step for point in points] == [1, 2]
        assert [point.value for point in points] == pytest.approx(list(history[column]), rel=1e-6)


@pytest.mark.slow
def test_nothing_replaces_a_run_but_overwrite_and_that_only_its_files(store, here, coprobe):
    shutil.copytree(store / "co", here / "new")
    (here / "new" / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in (here / "new").iterdir()}
    result = coprobe(f"{LINE} --seed 1")
    assert (result.code, result.err) == (
        2, "coprobe: error: new: holds a run already; choose another --out, or pass --resume or --overwrite\n"
    )  # fmt: skip
    assert {path.name: path.read_bytes() for path in (here / "new").iterdir()} == before
    result = coprobe(f"{LINE} --seed 1 --overwrite")
    assert result.code == 0 and max(map(cell_len, result.out.splitlines())) <= 80 and "PGD-10" in result.out
    after = {path.name: path.read_bytes() for path in (here / "new").iterdir()}
    assert after.keys() == before.keys() == {*RUN_FILES, "notes.txt"}
    assert {name for name in after if after[name] == before[name]} == {"notes.txt"}


@pytest.mark.slow
def test_two_processes_do_not_train_in_one_directory(here, coprobe):
    for more in ("", "--overwrite", "--resume"):
        with exclusive(here / "new"):
            result = coprobe(f"{LINE} {more}")
        assert (result.code, result.err) == (
            2, "coprobe: error: new: another process works there; wait for it, or name another\n"
        )  # fmt: skip
    assert list((here / "new").iterdir()) == []
    assert coprobe(f"{LINE} --epochs 1").code == 0 and not (here / "new" / ".lock").exists()


@pytest.mark.slow
def test_a_run_has_the_permissions_that_the_person_wants(here, coprobe):
    umask = 0o027  # neither the usual one nor that of a temporary file
    before = os.umask(umask)
    try:
        assert coprobe(f"{LINE} --epochs 1 --plot new/history.png").code == 0
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (here / "new").iterdir()} == {0o666 & ~umask}
    assert (here / "new").stat().st_mode & 0o777 == 0o777 & ~umask


@pytest.mark.slow
def test_a_directory_of_any_name(here, coprobe):
    result = coprobe(LINE.replace("--out new", "--out '$_\x1b[31m\udcff' --plot a.svg --epochs 1"))
    assert result.code == 0 and "\x1b" not in result.out + result.err
