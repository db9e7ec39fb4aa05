from __future__ import annotations

import pytest

from coprobe.data import Dataset, load
from coprobe.training import Run, train
from tests.training.runs import TINY


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load("digits", "train")


@pytest.fixture(scope="session")
def run(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run of `TINY`; to be left as it is."""
    return train(TINY, tmp_path_factory.mktemp("runs") / "tiny", data=digits)
