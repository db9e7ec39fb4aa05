"""What reaches a terminal: no name of a file acts on it, and no output takes the place of a run."""

import io
import json
import os
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
import torch

from coprobe.checkpoint import load
from coprobe.cli.output import Output, message, print_table, print_text, progress
from coprobe.core.text import cut, printable
from tests.nasty import NASTY

#: The colours and moves that we ourselves send, and what a terminal would take as anything else.
OURS = re.compile(r"\x1b\[[\d;?]*[mAKhl]")
FORBIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def flat(text):
    """Without blanks, line breaks and the frames of tables."""
    return re.sub(r"[\s─┃│|+-]", "", text)


@pytest.mark.parametrize("name", NASTY, ids=lambda name: ascii(name[:30]))
def test_any_name_is_shown_as_what_it_is(capsys, name):
    shown = flat(cut(printable(name), 1000))
    print_table(name, [name, "n"], [[name, "1"], ["b", "2"]], name)
    out = capsys.readouterr().out
    assert not FORBIDDEN.search(out)
    assert flat(out).count(shown) >= (4 if len(name) < 70 else 2) or not shown
    print_text(name)
    assert flat(capsys.readouterr().out) == flat(printable(name))
    message(name)
    assert capsys.readouterr().err == f"{printable(name)}\n"


def test_a_name_of_a_million_characters_is_cut(capsys):
    print_table("t", ["a"], [["x" * 1_000_000]])
    assert len(capsys.readouterr().out) < 3000


@pytest.mark.parametrize("name", NASTY[:24], ids=lambda name: ascii(name[:30]))
def test_the_live_line_shows_names_as_what_they_are(capsys, monkeypatch, name):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "200")
    with progress(name, 2) as advance:
        advance(1, name)
        advance(1)
    err = OURS.sub("", capsys.readouterr().err)
    assert not FORBIDDEN.search(err.replace("\r", ""))
    assert flat(printable(name)) in flat(err)


def test_an_error_shows_names_as_what_they_are(here, coprobe):
    for name in (name for name in NASTY if name.strip() and "\x00" not in name):
        result = coprobe(f"inspect -- {shlex.quote(name)}")
        assert result.code == 2, name
        assert result.err.startswith("coprobe: error: ") and result.err.count("\n") == 1
        assert result.err.rstrip("\n").isprintable() and len(result.err) <= 300 + len("coprobe: error: \n")


@pytest.mark.parametrize("name", ["recipe.json", "history.csv"])
def test_an_output_takes_the_place_of_no_file_of_a_run(store, here, coprobe, name):
    run = here / "run"
    run.mkdir()
    for path in (store / "co").iterdir():
        if path.is_file():
            (run / path.name).write_bytes(path.read_bytes())
    before = (run / name).read_bytes()
    result = coprobe(f"inspect tiny.pt --out run/{name}")
    assert (result.code, result.err) == (
        2, f"coprobe: error: run/{name}: is a file of the run there; choose another name\n"
    )  # fmt: skip
    assert (run / name).read_bytes() == before
    Output(False, run / "mine.csv", None)
    Output(False, here / name, None)


def odd_checkpoint(here, name):
    """Somebody's file whose every text is `name`."""
    weights = load(here / "tiny.pt").model.network.state_dict()
    facts = {"dataset": name, name or "empty": name, "args": {"notes": name, "method": name}}
    torch.save({**facts, "state_dict": weights}, here / "odd.pt")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["\x1b[31mred\x07\u202e", "<b>$_x</b>[red]", "a\udcff"])
def test_what_a_file_says_of_itself_acts_on_nothing(here, coprobe, name):
    odd_checkpoint(here, name)
    for more in ("", "--out odd.csv --plot odd.svg"):
        result = coprobe(f"inspect odd.pt {more}")
        assert result.code == 0, result
        assert not FORBIDDEN.search(result.out + result.err)
    given = json.loads(coprobe("inspect odd.pt --json").out)
    assert given["facts"]["the file says: dataset"] == name
    shown = coprobe("inspect odd.pt").out
    assert printable(name) in shown


def test_a_file_whose_name_is_no_text(here, coprobe):
    """Its results can be shown, drawn and stored."""
    name = os.fsdecode(b"a\xff.pt")
    try:
        (here / "tiny.pt").rename(here / name)
    except OSError:
        pytest.skip("this file system takes no such name")
    line = f"evaluate '{name}' --limit 20 --attacks fgsm --plot a.svg --out"
    for suffix in ("csv", "parquet", "json"):
        assert coprobe(f"{line} a.{suffix}").code == 0
    assert set(pd.read_csv("a.csv")["model"]) == set(pd.read_parquet("a.parquet")["model"]) == {r"a\udcff.pt"}


@pytest.mark.slow
def test_nothing_of_the_environment_is_in_any_output(here, coprobe, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "WANDB_API_KEY", "SSH_AUTH_SOCK", "ANY"):
        monkeypatch.setenv(name, f"canary-{name}")
    said = []
    for line in (
        "inspect tiny.pt --out a.csv --plot a.png",
        "activations tiny.pt --limit 10 --attack fgsm --out b.parquet --plot b.svg",
        "activations tiny.pt --limit 10 --attack fgsm --out c.json --plot c.pdf",
        "train --data digits --limit-train 32 --held-out 20 --width 2 --batch-size 32 --epochs 1 --out run",
    ):
        result = coprobe(f"{line} --json")
        assert result.code == 0
        said += [result.out, result.err]
    files = [path for path in Path().rglob("*") if path.is_file()]
    assert len(files) >= 11
    assert b"canary" not in b"".join(path.read_bytes() for path in files) + "".join(said).encode()


def test_a_terminal_without_the_signs_gets_escapes(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")
    monkeypatch.setattr("sys.stdout", stream)
    print_text("a\x1bb")
    stream.flush()
    assert stream.buffer.getvalue() == b"a\\x1bb\n"


PATHS = [
    "/home/somebody/experiments/2024-11/cifar10-resnet18-fgsm-rs-16-255/seed-0/checkpoints/last/checkpoint.pt",
    "backbone.stages.0.blocks.11.attention.output.dense.parametrizations.weight.original0#relu2:in",
    r"C:\Users\somebody\Documents\experiments\adversarial\cifar10-resnet18-fgsm-rs-16-255\checkpoint.pt",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("where", ["title", "first", "last", "note", "text"])
def test_paths_can_be_copied(capsys, path, where):
    if where == "text":
        print_text(f"The channels of {path} jump.")
    else:
        first = path if where == "first" else "some name"
        last = path if where == "last" else "some words that may be wrapped " * 4
        rows = [[first, "12.5", last], ["b", "1", "c"]]
        print_table(path if where == "title" else "t", ["", "n", "which"], rows, path if where == "note" else "")
    out = capsys.readouterr().out
    assert path in out
    assert where in ("title", "note", "text") or ("12.5" in out and flat(first) in flat(out))


def test_what_is_no_path_is_wrapped(capsys):
    print_table("t", ["", "which"], [["a/b", "words " * 40]], "word " * 40)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_inspect_shows_a_long_path_whole(here, coprobe):
    folder = here / ("a-long-name-of-an-experiment-" * 3) / "seed-0"
    folder.mkdir(parents=True)
    (folder / "tiny.pt").write_bytes((here / "tiny.pt").read_bytes())
    assert coprobe(f"inspect {folder}/tiny.pt").out.count(f"{folder}/tiny.pt") == 2


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json", "png"])
def test_results_are_written_through_links(here, coprobe, suffix):
    (here / "elsewhere").mkdir()
    link, target = here / f"out.{suffix}", here / "elsewhere" / f"kept.{suffix}"
    link.symlink_to(Path("elsewhere") / target.name)
    option = "--plot" if suffix == "png" else "--out"
    for _ in range(2):  # the target is made, then replaced
        assert coprobe(f"inspect tiny.pt {option} out.{suffix}").code == 0
        assert link.is_symlink()
        assert target.stat().st_size > 0
        assert [path.name for path in (here / "elsewhere").iterdir()] == [target.name]
        target.write_bytes(b"old")
