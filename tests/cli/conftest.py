"""A tiny checkpoint, two tiny runs, and the command line called in this process."""

import shlex
import shutil
import urllib.error
from dataclasses import dataclass

import pytest
import torch

from coprobe.checkpoint import Checkpoint
from coprobe.cli import main
from coprobe.models import Classifier, build
from coprobe.training import Recipe, train

RECIPE = Recipe(
    data="digits", limit_train=64, held_out=20, width=4, eps_train=26, epochs=2, batch_size=32, augment="none"
)


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path_factory):
    """A terminal of 80 columns, no network, and a data folder that is empty."""

    def refuse(*args, **options):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("COPROBE_DATA", str(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="session")
def store(once):
    """`tiny.pt`, which looks trained on digits, and the runs `co` and `stable`; to be left as they are."""
    return once("store", fill)


def fill(folder):
    torch.manual_seed(0)
    arch_args = {"width": 4, "num_classes": 10, "in_channels": 1}
    model = Classifier(build("resnet18", **arch_args)).eval()
    recipe = {"data": "digits", "eps_train": 26.0}
    Checkpoint(model, "resnet18", arch_args, recipe, {"epoch": 1}, (1, 32, 32)).save(folder / "tiny.pt")
    train(RECIPE, folder / "co")
    shutil.copytree(folder / "co", folder / "stable")


@pytest.fixture
def here(store, tmp_path, monkeypatch):
    """The working directory, which holds `tiny.pt`."""
    shutil.copy(store / "tiny.pt", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def two(here, store):
    """The working directory, which holds `tiny.pt` and the run `co`."""
    shutil.copytree(store / "co", here / "co")
    return here


@pytest.fixture
def coprobe(capsys):
    """A function: a command line to what it returns and prints."""

    def call(line):
        capsys.readouterr()
        code = main(shlex.split(line))
        return Result(code, *capsys.readouterr())

    return call
