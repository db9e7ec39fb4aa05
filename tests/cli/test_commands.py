"""Every command end to end: what goes to stdout, to stderr, and into files."""

import io
import itertools
import json
import math
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import click
import pandas as pd
import pytest
from rich.cells import cell_len

import coprobe as package
from coprobe.cli import COMMANDS, cli, commands, main
from coprobe.errors import InterruptedRunError
from coprobe.training import METHODS, make_method
from coprobe.verdict.signs import SIGNS

#: A quick command line of each command that gives a table, and the columns of its rows.
TABLES = {
    "inspect tiny.pt": {"weight", "shape", "rms"},
    "nodes tiny.pt": {"path", "letter", "shape"},
    "activations tiny.pt --limit 20 --attack pgd:2": {"node", "channel", "t_act", "v_act", "mean_change"},
    "mask tiny.pt --limit 20 --attack pgd:2 --attacks fgsm": {"attack", "mask", "masked", "n", "accuracy"},
    "evaluate tiny.pt --limit 20 --attacks fgsm --noise none --noise uniform:16": {"attack", "noise", "low", "high"},
    "evaluate tiny.pt --limit 20 --attacks fgsm --noise none --noise gauss:60 --noise-draws 3": {"model", "spread"},
    "increments tiny.pt --limit 20 --attack pgd:2:rule=always": {"node", "channel", "step", "s", "s_step", "images"},
    "transfer tiny.pt co --limit 20 --attacks fgsm --noise none --noise uniform:16": {
        "target", "attack", "noise", "mask", "n", "accuracy", "low", "high", "spread",
    },
    "measure tiny.pt gradient-alignment --limit 20": {"metric", "n", "counted", "alignment", "low", "high"},
    "diagnose tiny.pt --limit 20 --attack pgd:2": {"attack", "accuracy", "low", "high", "n"},
}  # fmt: skip


def refuse_constant(name):
    raise AssertionError(f"{name} is not JSON")


def parse(text):
    """Strictly: no NaN, no infinity."""
    return json.loads(text, parse_constant=refuse_constant)


def check_same(read, rows):
    """The same numbers and words in a file as in the JSON on stdout."""
    assert len(read) == len(rows)
    for mine, theirs in zip(read, rows, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():  # Parquet gives lists back as arrays: left out
            if theirs[key] is None:
                assert value is None or value == "" or value != value
            elif isinstance(value, float):
                assert value == pytest.approx(theirs[key], rel=1e-12, abs=0)
            elif isinstance(value, str | int):
                assert str(value) == str(theirs[key])


def without_budget(err):
    """The lines on stderr, but for the one on attacks that can't reach the radius."""
    return [line for line in err.splitlines() if "at most, and the budget is" not in line]


@pytest.mark.slow
@pytest.mark.parametrize("line", TABLES)
def test_a_table_for_people_and_a_picture(two, coprobe, line):
    picture = "" if line.startswith("measure") else "picture.png"
    result = coprobe(f"{line} --plot {picture}" if picture else line)
    assert result.code == 0
    # the progress bar is for terminals
    assert without_budget(result.err) == ([f"wrote {picture}"] if picture else [])
    assert max(map(cell_len, result.out.splitlines())) <= 80
    assert len(result.out.splitlines()) > 4 and "\x1b" not in result.out
    assert {path.name for path in two.iterdir()} - {picture} == {"co", "tiny.pt"}
    assert not picture or (two / picture).stat().st_size > 3000


def test_pictures_of_every_kind(here, coprobe):
    for suffix, start in {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}.items():
        result = coprobe(f"nodes tiny.pt --json --plot picture{suffix}")
        assert (result.code, result.err) == (0, f"wrote picture{suffix}\n")
        assert (here / f"picture{suffix}").read_bytes().startswith(start)


@pytest.mark.slow
@pytest.mark.parametrize("line", TABLES)
def test_json_for_programs_and_the_same_in_files(two, coprobe, line):
    tables = {}
    for suffix in ("parquet", "csv", "json"):
        result = coprobe(f"{line} --json --out results/t.{suffix}")
        assert (result.code, without_budget(result.err)) == (0, [f"wrote results/t.{suffix}"])
        tables[suffix] = parse(result.out)
    given = tables["json"]
    assert tables["parquet"]["rows"] == tables["csv"]["rows"] == given["rows"]  # the seed is the same
    assert set(given["rows"][0]) >= TABLES[line]
    about = given["provenance"]
    assert about["coprobe"] == package.__version__
    assert about["command"] and about["checkpoint"].endswith("tiny.pt") and len(about["checkpoint_digest"]) == 16
    if "--limit" in line:
        assert (about["seed"], about["device"], about["images"], about["data"]) == (0, "cpu", 20, "digits")
        assert len(about["data_digest"]) == 16
        assert about["epsilon"] == 26  # the training budget

    check_same(pd.read_parquet("results/t.parquet").to_dict("records"), given["rows"])
    check_same(pd.read_csv("results/t.csv", keep_default_na=False).to_dict("records"), given["rows"])
    written = parse(Path("results/t.json").read_text())
    check_same(written["rows"], given["rows"])
    digest = about["checkpoint_digest"]
    assert written["checkpoint_digest"] == digest
    assert pd.read_parquet("results/t.parquet").attrs["checkpoint_digest"] == digest
    assert parse(Path("results/t.provenance.json").read_text())["checkpoint_digest"] == digest


def test_inspect_says_how_it_was_read_and_trained(here, coprobe):
    facts = parse(coprobe("inspect tiny.pt --json").out)["facts"]
    assert facts["architecture"] == "resnet18" and facts["container"] == "zip" and facts["width"] == 4
    assert facts["trained: data"] == "digits" and facts["nodes"].startswith("A relu, B layer1")


def test_nodes_marks_the_five(here, coprobe):
    rows = parse(coprobe("nodes tiny.pt --json --image-size 16").out)["rows"]
    assert [row["letter"] for row in rows if row["letter"]] == list("ABCDE")
    assert rows[0]["path"] == "relu" and list(rows[0]["shape"]) == [4, 16, 16]


def test_activations_lists_the_most_salient_first(here, coprobe):
    given = parse(coprobe("activations tiny.pt --limit 20 --attack pgd:2 --node B --node A --json").out)
    rows = given["rows"]
    assert [row["node"] for row in rows] == ["B"] * 4 + ["A"] * 4
    assert all(a["t_act"] >= b["t_act"] for a, b in itertools.pairwise(rows) if a["node"] == b["node"])
    assert set(given["v_act"]) == {"A", "B"} and given["v_act"]["A"] > 0


def test_mask_counts_what_it_masks(here, coprobe):
    line = "mask tiny.pt --limit 20 --attack pgd:2 --attacks fgsm --percent 50 --compare random,variance --json"
    given = parse(coprobe(line).out)
    assert {row["mask"]: row["masked"] for row in given["rows"]} == {
        "none": 0, "top 50 %": 2, "random": 2, "variance": 2,
    }  # fmt: skip
    assert len(given["masks"]["variance"]) == 2
    assert {row["attack"] for row in given["rows"]} == {"clean", "FGSM"}


def test_mask_takes_the_checkpoint_probed_last(here, store, coprobe):
    shutil.copytree(store / "co", here / "runs" / "co")
    assert coprobe("evaluate tiny.pt --limit 20 --attacks fgsm").code == 0
    result = coprobe("mask --limit 20 --alpha2 0.5 --attack fgsm --attacks fgsm --json")
    assert (result.code, result.err) == (0, f"{here}/tiny.pt (probed last)\n")
    assert parse(result.out)["provenance"]["checkpoint"] == f"{here}/tiny.pt"


def test_mask_takes_the_newest_run(here, store, coprobe):
    for age, name in enumerate(("co", "stable")):
        shutil.copytree(store / name, here / "runs" / name)
        os.utime(here / "runs" / name / "checkpoint.pt", (1e9 - age, 1e9 - age))
    line = "mask --limit 20 --attack fgsm --attacks fgsm"
    result = coprobe(line)
    assert (result.code, result.err) == (0, f"{here}/runs/co/checkpoint.pt (newest run)\n")
    shutil.rmtree(here / "runs" / "co")  # what was probed last is gone
    assert coprobe(line).err == f"{here}/runs/stable/checkpoint.pt (newest run)\n"


def test_what_was_probed_last_is_kept_per_directory(here, store, coprobe, monkeypatch):
    coprobe("evaluate tiny.pt --limit 20 --attacks fgsm")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert coprobe("mask --limit 20").code == 2


def test_nowhere_to_remember_is_no_error(here, coprobe, monkeypatch):
    (here / "file").touch()
    monkeypatch.setenv("COPROBE_STATE", str(here / "file"))
    assert coprobe("evaluate tiny.pt --limit 20 --attacks fgsm").code == 0
    assert coprobe("mask").code == 2


def test_evaluate_takes_several_checkpoints(here, store, coprobe):
    result = coprobe(f"evaluate tiny.pt {store / 'co'} --limit 20 --attacks fgsm")
    assert result.code == 0 and result.out.count("accuracy (%)") == 2
    given = parse(coprobe(f"evaluate tiny.pt {store / 'co'} --limit 20 --attacks fgsm --json").out)
    assert len({row["model"] for row in given["rows"]}) == 2
    assert len(set(given["provenance"]["checkpoint_digest"])) == 2 and given["provenance"]["seed"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fgsm", "free"])
def test_train(here, coprobe, method):
    """One of a pass per image and update, and the one of several; `tests/training/test_trainer.py` trains with all."""
    line = (
        f"train --method {method} --data digits --limit-train 64 --held-out 20 --width 4 --batch-size 32 --epochs 1 "
        "--eps-train 26 --out runs/new"
    )
    result = coprobe(f"{line} --json")
    assert result.code == 0
    assert "epoch   1/1  loss " in result.err
    given = parse(result.out)
    assert len(given["rows"]) == 1 and given["run"] == "runs/new" and given["recipe"]["method"] == method
    assert given["provenance"]["images"] == 64 and len(given["provenance"]["checkpoint_digest"]) == 16
    files = sorted(path.name for path in (here / "runs" / "new").iterdir())
    assert files == ["best.pt", "checkpoint.pt", "history.csv", "recipe.json"]
    history = pd.read_csv(here / "runs" / "new" / "history.csv")
    assert {"epoch", "lr", "train_loss", "train_accuracy", "clean", "fgsm", "pgd10", "v_act_A"} <= set(history.columns)
    assert math.isfinite(history["train_loss"][0])


@pytest.mark.parametrize("method", METHODS)
def test_train_takes_every_method(here, coprobe, method, monkeypatch):
    asked = []

    def train(recipe, out, **how):
        asked.append((recipe, out))
        raise InterruptedRunError("it is asked for", signal.SIGINT)

    monkeypatch.setattr("coprobe.training.train", train)
    assert coprobe(f"train --method {method} --data digits --eps-train 26 --out runs/new").code == 130
    ((recipe, out),) = asked
    assert (recipe.method, recipe.data, recipe.eps_train, Path(out)) == (method, "digits", 26, Path("runs/new"))


def test_methods_lists_every_method_with_its_cost_and_source(coprobe):
    result = coprobe("methods")
    assert (result.code, result.err) == (0, "")
    assert max(map(cell_len, result.out.splitlines())) <= 80
    said = parse(coprobe("methods --json").out)
    assert [one["name"] for one in said] == list(METHODS)
    for one in said:
        entry = METHODS.entry(one["name"])
        assert (one["summary"], one["source"], one["cost"]) == (entry.summary, entry.source, entry.facts["cost"])
        (row,) = [line for line in result.out.splitlines() if line.startswith(f" {one['name']} ")]
        _, cost, *summary = row.split()
        assert cost == f"{entry.facts['cost']:g}" and entry.summary.startswith(summary[0])
    assert {one["name"]: one["cost"] for one in said}["fgsm"] == 1


@pytest.mark.parametrize("name", METHODS)
def test_methods_describes_one_with_the_options_that_train_takes(coprobe, name):
    result = coprobe(f"methods {name}")
    assert (result.code, result.err) == (0, "")
    docstring = METHODS[name].__doc__
    assert result.out.startswith(f"{name}: ") and docstring.splitlines()[0] in result.out
    (one,) = parse(coprobe(f"methods {name} --json").out)
    shown = dict(re.findall(r"^--option (\S+)=(\S+)$", result.out, re.MULTILINE))
    assert shown == {key: "…" if value is None else str(value) for key, value in one["options"].items()}
    method = make_method(name, {key: value for key, value in one["options"].items() if value is not None}, epsilon=0.1)
    assert repr(method) == repr(make_method(name, {}, epsilon=0.1))
    assert all(key.replace("-", "_") in docstring for key in shown), "an option is not explained"


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 3, 4])
def test_figure_and_its_second_time_without_an_attack(here, store, coprobe, monkeypatch, few_queries, number):
    for name in ("co", "stable"):
        shutil.copytree(store / name, here / name)
    line = f"figure {number} co stable --limit 10 --out figures"
    first = coprobe(line)
    names = [f"figures/fig0{number}{suffix}" for suffix in (".png", ".pdf", ".csv")]
    assert first.code == 0 and first.out.split() == names
    assert all((here / name).stat().st_size > 300 for name in names)
    numbers = (here / names[2]).read_text()
    assert len(numbers.splitlines()) > 4
    monkeypatch.setattr("coprobe.attacks.AdversarialExamples.craft", None)
    second = coprobe(f"{line} --json")
    assert second.code == 0
    assert parse(second.out)["files"] == names
    assert (here / names[2]).read_text() == numbers
    if number == 3:
        assert coprobe(f"{line} --eps 8").code == 1  # other settings need another attack


def test_every_command_is_listed():
    assert sorted(COMMANDS) == sorted(module.name for module in pkgutil.iter_modules(commands.__path__))


@pytest.mark.parametrize("name", COMMANDS)
def test_help(coprobe, name):
    result = coprobe(f"{name} --help")
    assert (result.code, result.err) == (0, "")
    assert ("Example:\n" in result.out or "Examples:\n" in result.out) and f"    coprobe {name}" in result.out
    command = cli.get_command(click.Context(cli), name)
    assert re.search(rf"^  {name} +{re.escape(COMMANDS[name])}$", coprobe("--help").out, re.M)  # not cut off
    for parameter in command.params:
        assert isinstance(parameter, click.Argument) or parameter.help or parameter.show_default, parameter.name
    assert {"--json", "--debug"} <= {flag for parameter in command.params for flag in parameter.opts}
    flags = [flag for parameter in command.params for flag in parameter.opts]
    assert len(flags) == len(set(flags))


def test_help_fits_a_terminal(coprobe):
    lines = coprobe("--help").out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[lines.index("Commands:") + 1 :]] == list(COMMANDS)


def test_no_command_shows_the_help(coprobe):
    result = coprobe("")
    assert result.code == 2 and "Usage: coprobe" in result.err


def run_python(code, **options):
    command = [sys.executable, *code]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, **options)


@pytest.mark.procs
def test_help_imports_nothing_heavy():
    code = (
        "import sys; from coprobe.cli import COMMANDS, main; "
        "[main([*command, '--help']) for command in [(), *((name,) for name in COMMANDS)]]; print(*sys.modules)"
    )
    result = run_python(["-c", code])
    loaded = set(result.stdout.splitlines()[-1].split())
    assert "coprobe.cli" in loaded
    assert not loaded & {"torch", "numpy", "pandas", "matplotlib", "sklearn", "torchvision", "captum"}


@pytest.mark.procs
def test_python_dash_m():
    result = run_python(["-m", "coprobe", "--version"])
    assert (result.returncode, result.stdout) == (0, f"coprobe, version {package.__version__}\n")


@pytest.mark.procs
def test_a_reader_that_goes_is_no_traceback():
    code = (
        "import os, sys; read, write = os.pipe(); os.close(read); os.dup2(write, 1)\n"
        "from coprobe.cli import main; sys.exit(main(['--help']))"
    )
    result = run_python(["-c", code])
    assert (result.returncode, result.stderr) == (1, "")


def test_a_terminal_without_the_marks_is_no_error(here, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["nodes", "tiny.pt"]) == 0
    terminal.flush()
    assert b"4 channels ? 32 ? 32" in terminal.buffer.getvalue()


def test_main_reads_the_command_line_of_the_process(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["coprobe", "--version"])
    assert main() == 0 and capsys.readouterr().out.startswith("coprobe, version")


def test_mask_says_when_no_channel_is_salient(here, coprobe):
    said = coprobe("mask tiny.pt --limit 20 --attack fgsm --attacks fgsm --alpha2 1 --compare none").out
    assert "no channel is masked: none at A has a T_act above 1, the largest is" in " ".join(said.split())
    assert "(--percent 5)" in said
    said = coprobe("mask tiny.pt --limit 20 --attack fgsm --attacks fgsm --alpha2 1").out
    assert "none" in said and "variance" not in said


def test_masks_have_intervals(here, coprobe):
    said = coprobe("mask tiny.pt --limit 20 --attack fgsm --attacks fgsm --percent 50 --compare none").out
    as_json = coprobe("mask tiny.pt --limit 20 --attack fgsm --attacks fgsm --percent 50 --compare none --json").out
    rows = json.loads(as_json)["rows"]
    assert {f"{100 * row['low']:.1f} – {100 * row['high']:.1f}" for row in rows} <= {
        *re.findall(r"\d+\.\d – \d+\.\d", said)
    }


def test_diagnose_says_the_verdict_and_then_the_signs(here, coprobe):
    line = "diagnose tiny.pt --limit 20 --attack pgd:2 --signs gradient-alignment,accuracy-over-eps,weight-outliers"
    result = coprobe(f"{line} --sign-eps 1,30/255 --out s.csv --per-image i.parquet --plot s.png")
    wrote = [line for line in result.err.splitlines() if line.startswith("wrote")]
    assert result.code == 0 and wrote == ["wrote s.png", "wrote s.csv", "wrote i.parquet"]
    assert result.out.index("accuracy is") < result.out.index("2 gradient-alignment") < result.out.index("11 accuracy")
    assert max(map(cell_len, result.out.splitlines())) <= 80
    table, images = pd.read_csv("s.csv"), pd.read_parquet("i.parquet")
    assert list(table["sign"].unique()) == ["gradient-alignment", "accuracy-over-eps", "weight-outliers"]
    assert set(table[table["sign"] == "accuracy-over-eps"]["at"].dropna()) == {"1", "30"}
    assert list(images["image"].unique()) == [*range(20)] and set(images["sign"]) == set(table["sign"][:5])
    given = parse(coprobe(f"{line} --json").out)
    assert {"verdict", "signs", "rows", "provenance"} <= set(given) and {row["attack"] for row in given["rows"]}
    cosine = given["signs"][0]
    assert cosine["value"] == table["value"][0] and cosine["healthy"] == "near 1" and cosine["n"] <= 20


def test_signs_lists_every_sign_and_describes_one(coprobe):
    listed = coprobe("signs")
    assert (listed.code, listed.err) == (0, "") and max(map(cell_len, listed.out.splitlines())) <= 80
    said = parse(coprobe("signs --json").out)
    assert {one["name"] for one in said} == set(SIGNS)
    assert sorted({one["number"] for one in said}) == [*range(1, 16)]
    for one in said:
        result = coprobe(f"signs {one['name']}")
        assert (result.code, result.err) == (0, "")
        said_in_words = " ".join(result.out.split())
        assert one["formula"] in said_in_words and one["source"] in said_in_words
        for quantity in one["quantities"]:
            assert quantity["name"] in said_in_words and quantity["unit"]
            assert quantity["interval"] in ("wilson", "normal", "bootstrap", "none")


def test_channels_that_are_left_out_of_a_table_are_counted():
    from coprobe.cli.commands.diagnose import _which

    assert _which([]) == "–" and _which([*range(10)]) == "0 1 2 3 4 5 6 7 8 9"
    assert _which([*range(23)]) == "0 1 2 3 4 5 6 7 8 9 and 13 more"
