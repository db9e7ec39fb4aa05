"""A full-width checkpoint that nobody here trained, on real CIFAR-10, with no flag but --data."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import coprobe
from coprobe.cli import main
from coprobe.data import load

pytestmark = pytest.mark.real


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_inspect_reads_the_architecture_off_the_weights(
    example_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = run(capsys, "inspect", str(example_checkpoint))["facts"]
    assert facts["architecture"] == "resnet18"
    assert (facts["width"], facts["num_classes"], facts["in_channels"]) == (64, 10, 3)
    assert facts["container"] == "legacy pickle"


@pytest.mark.slow
def test_accuracy_is_that_of_the_authors_own_network(example_checkpoint: Path, cifar10: str) -> None:
    dataset = load(cifar10, limit=64)
    images = dataset.images.float() / 255
    spec = importlib.util.spec_from_file_location("authors", example_checkpoint.parent / "resnet.py")
    assert spec is not None and spec.loader is not None
    authors = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(authors)
    theirs = authors.ResNet18()
    theirs.load_state_dict(torch.load(example_checkpoint, map_location="cpu", weights_only=True))
    with torch.no_grad():
        expected = theirs.eval()(images)
        logits = coprobe.load(example_checkpoint).model(images)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    assert 0.75 < (logits.argmax(1) == dataset.labels).float().mean() < 0.95


@pytest.mark.slow
def test_probe_and_mask_it(example_checkpoint: Path, cifar10: str, capsys: pytest.CaptureFixture[str]) -> None:
    common = (str(example_checkpoint), "--data", cifar10, "--limit", "4", "--attack", "fgsm")
    probed = run(capsys, "activations", *common, "--node", "A", "--node", "B")
    assert len(probed["rows"]) == 128
    assert {row["node"] for row in probed["rows"]} == {"A", "B"}
    assert all(0 <= row["t_act"] <= 1 for row in probed["rows"])
    masked = run(capsys, "mask", *common, "--percent", "10", "--attacks", "fgsm", "--compare", "random")
    assert {(row["mask"], row["masked"]) for row in masked["rows"]} == {("none", 0), ("top 10 %", 6), ("random", 6)}


@pytest.mark.slow
def test_a_clean_trained_model_is_not_robust(
    example_checkpoint: Path, cifar10: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = run(capsys, "evaluate", str(example_checkpoint), "--data", cifar10, "--limit", "10")["rows"]
    accuracy = {row["attack"]: row["accuracy"] for row in rows}
    assert accuracy["clean"] > 0.7
    assert accuracy["PGD-10"] == 0


@pytest.mark.slow
def test_the_normalisation_check_says_that_images_are_not_normalised(
    example_checkpoint: Path, cifar10: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coprobe.checkpoint.normalisation_check.IMAGES", 64)
    wrong = ("--mean", "0.4914,0.4822,0.4465", "--std", "0.2471,0.2435,0.2616")
    assert main(["inspect", str(example_checkpoint), "--data", cifar10, "--json", *wrong]) == 0
    out, err = capsys.readouterr()
    given = json.loads(out)
    assert (given["facts"]["architecture"], given["facts"]["num_classes"]) == ("resnet18", 10)
    check = given["normalisations"]
    assert check["images"] == 64 and check["best"] == "none" and check["alike"] == []
    tried = {one["name"]: one["accuracy"] > 0.5 for one in check["tried"]}  # of many readings the best of 32 images
    assert tried.pop("none") and "CIFAR-10's" in tried and not any(tried.values())
    assert check["loaded"] == "CIFAR-10's"
    assert "normalised by --mean/--std it is right on " in err and err.endswith("; leave out --mean and --std\n")
