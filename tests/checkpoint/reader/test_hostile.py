"""Nothing in a hostile file runs, and each is refused in one line or opens as the plain data that it is."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from subprocess import run

import pytest

from coprobe.checkpoint.reader import open_checkpoint
from coprobe.errors import InputError
from tests.checkpoint.reader import corpus, guard
from tests.checkpoint.reader.guard import Report
from tests.checkpoint.reader.reading import at_most

pytestmark = [
    pytest.mark.slow,
    pytest.mark.procs,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="each file is read in a fork"),
]

ENTRIES = {entry.name: entry for entry in corpus.entries()}
#: What a control must have been seen to do: start a process, run Python, write or remove a file.
_DANGEROUS = (
    "os.system", "os.posix_spawn", "subprocess.Popen", "exec", "compile", "pickle.find_class", "open", "os.mkdir",
    "shutil.rmtree", "os.rmdir", "ctypes.dlopen",
)  # fmt: skip


def test_the_corpus_has_every_file_that_it_should(reports: dict[str, Report]) -> None:
    assert len(ENTRIES) >= 150
    assert set(reports) == set(ENTRIES)


def test_an_unsafe_loader_runs_the_code_of_each_and_the_guards_see_it() -> None:
    found = guard.reports("unsafe", unsafe_default=True)
    assert len(found) >= 80
    assert [name for name, report in found.items() if not report.sprung] == []
    unseen = [
        name for name, report in found.items() if not any(event.split(" ")[0] in _DANGEROUS for event in report.events)
    ]
    assert unseen == []


def test_nothing_runs_is_imported_or_written(reports: dict[str, Report]) -> None:
    found = reports.values()
    assert {report.name: report.events for report in found if report.events} == {}
    assert [report.name for report in found if report.sprung or report.touched] == []


def test_nothing_runs_where_the_environment_asks_torch_for_its_unsafe_mode() -> None:
    found = guard.reports("read", "code", unsafe_default=True).values()
    assert len(found) >= 100
    assert [report.name for report in found if report.events or report.sprung or report.touched] == []


def test_each_is_refused_or_opens_as_it_should(reports: dict[str, Report]) -> None:
    wrong = {
        name: f"{report.outcome} instead of {ENTRIES[name].expect}: {report.message[-200:]}"
        for name, report in reports.items()
        if report.outcome not in ENTRIES[name].expect.split("|")
    }
    assert not wrong, _lines(wrong)


def test_each_refusal_is_one_printable_line_that_names_the_file_and_what_it_is(reports: dict[str, Report]) -> None:
    wrong = {}
    for name, report in reports.items():
        if report.outcome == "refused":
            fault = _fault(name, report.message)
        else:
            fault = "" if len(report.message) <= 300 and report.message.isprintable() else "reason"
        if fault:
            wrong[name] = f"{fault}: {report.message[-200:]!r}"
    assert not wrong, _lines(wrong)


def _fault(name: str, message: str) -> str:
    _, found, rest = message.partition(f"{os.sep}file{os.sep}")
    if not found or (name.isprintable() and not rest.startswith(f"{name}: ")):
        return "doesn't name the file"
    if len(rest) > 300:
        return f"{len(rest)} characters"
    if not message.isprintable():
        return "not printable"
    if not any(word in message.lower() for word in ENTRIES[name].says.lower().split("|")):
        return f"without {ENTRIES[name].says!r}"
    return ""


@pytest.mark.parametrize("name", ["bomb-nested-lists.pt", "bomb-list-in-itself.pt", "bomb-list-deep-800.pt"])
def test_what_is_nested_without_end_is_loaded_as_a_whole_or_refused(name: str, tmp_path: Path) -> None:
    trap = corpus.build(tmp_path, [ENTRIES[name]])[name]
    with at_most(2), open_checkpoint(trap.path) as contents, suppress(InputError):
        contents.loaded()


@pytest.fixture
def trap_folder(tmp_path: Path) -> Path:
    """A folder of files named like modules, each of which leaves a sentinel when it is imported."""
    for module in ("random", "torch", "pickle", "numpy", "json", "struct", "coprobe", "sitecustomize"):
        (tmp_path / f"{module}.py").write_text(f"open({str(tmp_path / 'sentinel')!r}, 'w').close()\n")
    return tmp_path


def test_modules_in_the_current_folder_are_not_imported(trap_folder: Path) -> None:
    trap = corpus.build(trap_folder / "corpus", [ENTRIES["code-posix-system.pt"]])["code-posix-system.pt"]
    sentinel = trap_folder / "sentinel"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    script = Path(sys.executable).with_name("coprobe")
    if not script.exists():
        pytest.skip("coprobe is not installed beside this Python")
    command = [str(script), "inspect", str(trap.path)]
    done = run(command, cwd=trap_folder, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in (0, 2), done.stderr
    assert trap.path.name in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not sentinel.exists()
    assert not trap.sprung
    run([sys.executable, "-c", "import random"], cwd=trap_folder, env=environment, check=False, timeout=60)
    assert sentinel.exists()


def _lines(found: dict[str, str]) -> str:
    return "\n".join(f"{name!r}: {fault}" for name, fault in found.items())
