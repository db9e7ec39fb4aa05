"""Provenance: what made a result, and which weights."""

import shlex
import subprocess
import sys
import time

import pytest
import torch

import coprobe
from coprobe.core.provenance import commit, digest_tensors, provenance


@pytest.fixture(autouse=True)
def fresh_commit():
    commit.cache_clear()
    yield
    commit.cache_clear()


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "b": torch.rand(2, 3, generator=generator),
        "a": torch.arange(4),
        "empty": torch.zeros(0),
        "n": torch.ones(()),
    }


def test_the_digest_is_fixed():
    # Written down, so that a change of the rule, which would orphan every result on disk, is seen.
    assert digest_tensors({"w": torch.arange(3, dtype=torch.float32)}) == "bf12d7faa599f750"


def test_order_layout_and_graph_do_not_matter():
    given = tensors()
    same = {name: given[name].clone() for name in reversed(given)}
    same["b"] = same["b"].t().contiguous().t().requires_grad_()
    assert not same["b"].is_contiguous()
    assert digest_tensors(same) == digest_tensors(given)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update(b=t["b"] + 1e-7),
        lambda t: t.update(b=t["b"].reshape(3, 2)),
        lambda t: t.update(a=t["a"].int()),
        lambda t: t.update(empty=torch.zeros(0, 2)),
        lambda t: t.update(c=t.pop("b")),
        lambda t: t.pop("empty"),
    ],
    ids=["value", "shape", "type", "empty shape", "name", "fewer"],
)
def test_everything_else_does(change):
    given, changed = tensors(), tensors()
    change(changed)
    assert digest_tensors(changed) != digest_tensors(given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.bool])
def test_every_type_has_a_digest(dtype):
    ones, zeros = (digest_tensors({"w": torch.full((3,), fill).to(dtype)}) for fill in (1, 0))
    assert ones != zeros and len(ones) == 16


def test_facts_and_command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/coprobe", "inspect", "my file.pt"])
    made = provenance(seed=3)
    assert made["seed"] == 3
    assert made["coprobe"] == coprobe.__version__ and made["torch"] == torch.__version__
    assert shlex.split(made["command"]) == ["coprobe", "inspect", "my file.pt"]
    assert time.strptime(made["created"], "%Y-%m-%dT%H:%M:%S%z")


def test_a_module_that_is_run_has_the_name_of_its_package(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/coprobe/__main__.py", "inspect", "a.pt"])
    assert provenance()["command"] == "coprobe inspect a.pt"


def install(monkeypatch, folder, *, git):
    """Make believe that coprobe lies in `folder`."""
    (folder / "coprobe").mkdir()
    monkeypatch.setattr("coprobe.core.provenance.__file__", str(folder / "coprobe" / "provenance.py"))
    if git:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.invalid"]
        (folder / "file").write_text("1")
        for command in (["init", "-q"], ["add", "file"], [*identity, "commit", "-q", "-m", "m"]):
            subprocess.run(["git", *command], cwd=folder, check=True, timeout=30)


def test_a_commit_is_named_and_changes_are_marked(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path, git=True)
    clean = commit()
    assert clean is not None and len(clean) == 12 and int(clean, 16)
    (tmp_path / "file").write_text("2")
    commit.cache_clear()
    assert commit() == f"{clean}+"


def test_an_installed_copy_has_no_commit(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path, git=False)
    assert commit() is None


def test_without_git_there_is_no_commit(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path, git=True)
    monkeypatch.setenv("PATH", "")
    assert commit() is None


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("https://me:secret@host/a.pt", "https://***@host/a.pt"),
        ("parquet:https://me:s@cret@host:8080/a", "parquet:https://***@host:8080/a"),
        ("s3://secret@bucket", "s3://***@bucket"),
        ("https://host/a@b.pt", "https://host/a@b.pt"),
        ("me@host:a.pt", "me@host:a.pt"),
    ],
)
def test_no_password_of_a_url_is_kept(monkeypatch, word, kept):
    monkeypatch.setattr(sys, "argv", ["coprobe", "inspect", word, "--data", f"x{word}"])
    assert shlex.split(provenance()["command"]) == ["coprobe", "inspect", kept, "--data", f"x{kept}"]


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("/home/me/runs", "~/runs"),
        ("/home/me", "~"),
        ("--out=/home/me/a.csv", "--out=~/a.csv"),
        ("parquet:/home/me/cifar", "parquet:~/cifar"),
        ("/home/me/my runs", "'~/my runs'"),
        ("/home/me2/runs", "/home/me2/runs"),
        ("/home/me-too/runs", "/home/me-too/runs"),
        ("/mnt/home/me/runs", "/mnt/home/me/runs"),
    ],
)
def test_whose_home_it_is_is_not_kept(monkeypatch, word, kept):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr(sys, "argv", ["coprobe", "inspect", word])
    assert provenance()["command"] == f"coprobe inspect {kept}"


def test_a_home_at_the_root_hides_nothing(monkeypatch):
    monkeypatch.setenv("HOME", "/")
    monkeypatch.setattr(sys, "argv", ["coprobe", "inspect", "/a.pt"])
    assert provenance()["command"] == "coprobe inspect /a.pt"


def test_nothing_of_the_environment_is_in_it(monkeypatch):
    canaries = {"AWS_SECRET_ACCESS_KEY": "canary-1", "HF_TOKEN": "canary-2", "GIT_ASKPASS": "canary-3", "X": "canary-4"}
    for name, value in canaries.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["coprobe", "inspect", "a.pt"])
    assert "canary" not in repr(provenance(seed=1)).lower()
