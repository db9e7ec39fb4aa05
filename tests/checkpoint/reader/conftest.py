"""The hostile files, opened once for all processes of the suite."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.checkpoint.reader import guard
from tests.checkpoint.reader.guard import Report


@pytest.fixture(scope="session")
def reports(once: Callable[[str, Callable[[Path], object]], Path]) -> dict[str, Report]:
    """What every file of the corpus did when it was read, by name."""

    def make(folder: Path) -> None:
        found = [asdict(report) for report in guard.reports("read").values()]
        (folder / "reports.json").write_text(json.dumps(found))

    found = json.loads((once("hostile files", make) / "reports.json").read_text())
    return {report["name"]: Report(**report) for report in found}
