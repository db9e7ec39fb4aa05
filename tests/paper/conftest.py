"""Two runs of the tiny scale, trained once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from coprobe.paper.needs import Need
from tests.paper.tiny import do, order_for


@pytest.fixture(scope="session")
def _trained(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    needs = [Need("mep-12", "history"), Need("cs-8", "history")]
    return once("trained", lambda directory: do(order_for(directory, needs)))


@pytest.fixture
def trained(_trained: Path, tmp_path: Path) -> Path:
    """A directory with the finished runs mep-12 and cs-8, of which nothing is measured."""
    return Path(shutil.copytree(_trained, tmp_path / "runs"))
