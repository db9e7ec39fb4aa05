from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from coprobe.data import Dataset, load
from coprobe.training import Run, train
from tests.training.runs import TINY


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load("digits", "train")


@pytest.fixture(scope="session")
def run(digits: Dataset, once: Callable[[str, Callable[[Path], object]], Path]) -> Run:
    """The run of `TINY`; to be left as it is."""
    return Run(once("tiny", lambda folder: train(TINY, folder, data=digits)))
