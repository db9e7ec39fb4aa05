"""How the threads of a command wait for each other; how long they do is for `benchmarks.busy` to say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from coprobe import cli
from coprobe.core import waiting
from tests.started import begun, ended

#: Notes how threads shall wait at the moment at which a process first asks for torch, which reads it then.
NOTE = """
import os, sys
from pathlib import Path

class Note:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            sys.meta_path.remove(self)
            Path(os.environ["NOTES"], str(os.getpid())).write_text(os.environ.get("OMP_WAIT_POLICY", "not said"))

sys.meta_path.insert(0, Note())

from coprobe.core import waiting
waiting.others = lambda: 1000
"""


@pytest.mark.parametrize(
    ("load", "said", "chosen"),
    [
        ("0.00 0.00 0.00 1/99 1", {}, None),
        ("0.00 0.00 0.00 3/99 1", {}, None),
        ("0.00 0.00 0.00 4/99 1", {}, "PASSIVE"),
        ("0.00 0.00 0.00 4/99 1", {"OMP_NUM_THREADS": "1"}, None),
        ("0.00 0.00 0.00 5/99 1", {"OMP_NUM_THREADS": "1"}, "PASSIVE"),
        ("0.00 0.00 0.00 9/99 1", {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        ("0.00 0.00 0.00 9/99 1", {"GOMP_SPINCOUNT": "7"}, None),
        ("not Linux's", {}, "PASSIVE"),
    ],
)
def test_threads_sleep_where_there_are_fewer_free_cores_and_nobody_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: str, said: dict[str, str], chosen: str | None
) -> None:
    """Four cores, two of them this process's."""
    (tmp_path / "loadavg").write_text(load)
    monkeypatch.setattr(waiting, "LOAD", tmp_path / "loadavg")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (2.7, 0.0, 0.0), raising=False)
    monkeypatch.setattr(os, "environ", dict(said))
    assert cli.main(["--version"]) == 0
    assert os.environ.get("OMP_WAIT_POLICY") == chosen


@pytest.mark.procs
def test_torch_and_that_of_other_processes_hears_of_it(
    here: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command itself and the two processes that it starts."""
    folder = tmp_path_factory.mktemp("notes")
    (folder / "sitecustomize.py").write_text(NOTE)
    notes = folder / "notes"
    notes.mkdir()
    monkeypatch.setenv("NOTES", str(notes))
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    line = "-m coprobe activations tiny.pt --limit 4 --attack fgsm --device cpu --devices 2"
    with begun(line, here, path=folder) as process:
        assert ended(process)[0] == 0
    assert [note.read_text() for note in notes.iterdir()] == ["PASSIVE"] * 3
