"""Settings of every test: one thread per test process, so that results and times don't depend on the machine."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

if TYPE_CHECKING:
    from coprobe.attacks import AdversarialExamples, Attack
    from coprobe.data.stream import ImageBatch

torch.set_num_threads(1)

SHARED_CIFAR10 = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "cifar10-jpeg"


#: Files whose tests or fixtures take longest, so that no process is left alone with one of them in the end.
LONGEST = (
    "test_demo.py", "test_bounds.py", "test_notebooks.py", "test_launch.py", "test_fuzz.py", "test_engines.py",
    "test_parallel.py", "test_devices.py", "test_classifier.py", "test_peers.py", "test_bad_input.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests come first."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Thousands of tests are there until the end: no garbage collection needs to look at them again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command line remembers stays inside the test."""
    monkeypatch.setenv("COPROBE_STATE", str(tmp_path_factory.mktemp("state")))


@pytest.fixture(scope="session", autouse=True)
def _default_forms() -> Iterator[None]:
    """No fast form is chosen by the clock: where the choice can't be kept, it is the default."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COPROBE_CACHE", os.devnull)
        yield


@pytest.fixture(scope="session", autouse=True)
def _own_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Data sets, and what is kept of them, stay inside the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COPROBE_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """A directory with what a function puts into it, which all processes of the suite share; to be left as it is."""
    from coprobe.core.files import exclusive

    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def made(name: str, make: Callable[[Path], object]) -> Path:
        place, done = base / name, base / f"{name}.done"
        with exclusive(base / f"{name}.making"):
            if not done.exists():
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
                make(place)
                done.touch()
        return place

    return made


@pytest.fixture(scope="session")
def cifar10() -> str:
    """`--data` of the real CIFAR-10 beside the repository; skips where there is none."""
    if not SHARED_CIFAR10.is_dir():
        pytest.skip("no CIFAR-10 beside the repository")
    return f"parquet:{SHARED_CIFAR10}"


@pytest.fixture(scope="session")
def example_checkpoint() -> Path:
    """The CIFAR-10 ResNet-18 that pyautoattack installs beside its examples; skips where it is not."""
    pyautoattack = pytest.importorskip("pyautoattack")
    path = Path(pyautoattack.__file__).parent / "examples" / "model_test.pt"
    if not path.is_file():
        pytest.skip("this pyautoattack comes without its example checkpoint")
    return path


@pytest.fixture
def few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Square attack with 200 of its 5,000 queries."""
    from pyautoattack.autoattack import SquareAttack

    perturb = SquareAttack.perturb

    def briefly(self: Any, *arguments: Any) -> Any:
        assert self.n_queries in (5000, 200)  # again for its second batch
        self.n_queries = 200
        return perturb(self, *arguments)

    monkeypatch.setattr(SquareAttack, "perturb", briefly)


@pytest.fixture(autouse=True)
def _own_batch_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found out about memory stays inside the test."""
    from coprobe.core.engine import BatchSize

    monkeypatch.setattr(BatchSize, "_found", {})


@pytest.fixture
def attacks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The specs of the attacks in the order in which batches of adversarial examples were crafted."""
    from coprobe.attacks import AdversarialExamples

    calls: list[str] = []
    craft = AdversarialExamples.craft

    def watched(self: AdversarialExamples, attack: Attack, batches: Iterator[ImageBatch]) -> Iterator[list[Tensor]]:
        for crafted in craft(self, attack, batches):
            calls.append(attack.spec)
            yield crafted

    monkeypatch.setattr(AdversarialExamples, "craft", watched)
    return calls
