"""The notebooks do what they promise, at demo scale."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

from coprobe.paper import RUNS, Results
from coprobe.paper.plan import items
from notebooks import run
from tests.paper.made import fate_of, history_of, make_results, put_run

NOTEBOOKS = {path.stem: path for path in sorted(run.HERE.glob("*.ipynb"))}
#: Goes before a notebook that trains, where what comes out is not judged.
LITTLE = """
from dataclasses import replace
from coprobe.paper.runs import SCALES

knobs = {**SCALES["demo"].knobs, "width": 4, "limit_train": 48, "held_out": 10, "epochs": 2}
SCALES["demo"] = replace(SCALES["demo"], knobs=knobs, images=20)
"""
FIGURES = [f"fig{number:02d}" for number in range(1, 13)]


def read(name: str) -> NotebookNode:
    return nbformat.read(NOTEBOOKS[name], as_version=4)


def code_of(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell: NotebookNode, kind: str) -> list[str]:
    """What a cell shows of a kind, as image/png; and nothing on stderr."""
    assert not [output["text"] for output in cell.outputs if output.get("name") == "stderr"]
    return [output["data"][kind] for output in cell.outputs if kind in output.get("data", {})]


@pytest.fixture
def made(tmp_path: Path) -> Results:
    """Results of everything that the paper shows."""
    needs = [need for item in items().values() for need in item.needs if need.kind != "history"]
    results = make_results(tmp_path / "results" / "demo", "demo", needs=needs)
    for name in results.runs:
        if "stable_node" in RUNS[name].knobs:  # claim C18 follows L_stable over the epochs
            put_run(results, name, history_of(results, name, fate_of(name)).assign(stable=0.1))
    return results


@pytest.fixture(autouse=True)
def _demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPROBE_SCALE", "demo")
    monkeypatch.setenv("COPROBE_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("COPROBE_CIFAR10", raising=False)


@pytest.mark.slow
@pytest.mark.procs
def test_figures_and_tables(made: Results, tmp_path: Path) -> None:
    """One kernel for all of them, which forgets every name in between, because the imports take most of the time."""
    notebooks = {name: read(name) for name in (*FIGURES, "tables")}
    everything = new_notebook()
    for notebook in notebooks.values():
        everything.cells += [new_code_cell("%reset -f"), *notebook.cells]
    run.execute(everything, tmp_path)
    for name in FIGURES:
        (cell,) = code_of(notebooks[name])
        assert len(shown(cell, "image/png")) == 1, name
        assert len(shown(cell, "text/html")) == 1, name
    _, tables, claims = code_of(notebooks["tables"])
    titles = [text.splitlines()[0].split(".")[0] for text in shown(tables, "text/markdown")]
    assert titles == [f"# Table {number}" for number in range(1, 8)]
    assert "| C45 |" in "".join(shown(claims, "text/markdown"))


@pytest.mark.slow
@pytest.mark.procs
def test_start_here(tmp_path: Path) -> None:
    notebook = read("start_here")
    folder = tmp_path / "notebooks"
    folder.mkdir()
    notebook.cells.insert(0, new_code_cell(LITTLE))
    run.execute(notebook, folder)
    _, *cells = code_of(notebook)
    assert [len(shown(cell, "image/png")) for cell in cells] == [0] * 7 + [1, 1, 0]
    co, stable = cells[-1].outputs[0]["text"].splitlines()
    assert "PGD-10 goes 20/255 at most" in cells[5].outputs[0]["text"]  # said once a probe
    assert co.startswith("FGSM is ") and stable.startswith("with L_stable at B is ")
    assert (tmp_path / "runs/start_here/demo/mep-12/checkpoint.pt").exists()


def test_a_newcomer_is_told_how_to_read_each_of_ten_cells() -> None:
    kinds = [cell.cell_type for cell in read("start_here").cells]
    assert kinds == ["markdown", "code"] * 10


@pytest.mark.parametrize("name", FIGURES)
def test_the_notebooks_of_figures_differ_in_words_and_number_only(name: str) -> None:
    assert [cell.cell_type for cell in read(name).cells] == ["markdown", "code"]
    words, code = (cell.source for cell in read(name).cells)
    number = int(name[3:])
    assert words.startswith(f"# Figure {number}: ")
    first = read("fig01").cells[1].source
    assert code == first.replace("FIGURES[1]", f"FIGURES[{number}]")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_is_committed_is_tidy(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.metadata == run.METADATA
    assert all("execution" not in cell.metadata for cell in notebook.cells)
    text = re.sub(r'"image/png": "[^"]*"', "", NOTEBOOKS[name].read_text(encoding="utf-8"))
    assert not re.search(r"/(home|root|tmp|work)/", text)


@pytest.mark.slow
@pytest.mark.procs
def test_executing_in_place_gives_the_same_file_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notebooks" / "one.ipynb"
    path.parent.mkdir()
    where = "import os\nos.path.relpath(os.environ['COPROBE_CIFAR10'].removeprefix('parquet:'))"
    nbformat.write(new_notebook(cells=[new_code_cell(where, id="one")]), path)
    monkeypatch.setattr(run, "HERE", path.parent)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COPROBE_CIFAR10", "parquet:images")
    run.main(["one"])
    first = path.read_bytes()
    assert b"'../images'" in first
    run.main([])
    assert path.read_bytes() == first
