"""What a checkpoint says of itself: its digest whatever the precision, and its classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from coprobe.checkpoint import Checkpoint, load
from coprobe.checkpoint.class_order import ClassMatch, match_classes
from coprobe.errors import InputError
from coprobe.models import Classifier, build

ARGS = {"width": 2, "num_classes": 3, "in_channels": 1}


def ours(**facts: Any) -> Checkpoint:
    torch.manual_seed(0)
    return Checkpoint(Classifier(build("resnet18", **ARGS)).eval(), "resnet18", ARGS, **facts)


def stored_as(dtype: torch.dtype, path: Path, **changed: torch.Tensor) -> Path:
    weights = {**ours().model.network.state_dict(), **changed}
    save_file({name: w.to(dtype) if w.is_floating_point() else w for name, w in weights.items()}, path)
    return path


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float32])
def test_for_looking_weights_stay_as_they_are_stored(tmp_path: Path, dtype: torch.dtype) -> None:
    path = stored_as(dtype, tmp_path / "c.safetensors")
    probed, looked_at = load(path), load(path, as_stored=True)
    assert {weight.dtype for weight in probed.model.parameters()} == {torch.float32}
    assert {weight.dtype for weight in looked_at.model.parameters()} == {dtype}
    assert looked_at.digest == probed.digest
    assert (looked_at.layout, looked_at.evidence, looked_at.notes) == (probed.layout, probed.evidence, probed.notes)


def test_for_looking_the_same_weights_are_refused(tmp_path: Path) -> None:
    large = torch.full((3,), 1e300, dtype=torch.float64)  # infinite as float32
    path = stored_as(torch.float64, tmp_path / "c.safetensors", **{"linear.bias": large})
    for as_stored in (False, True):
        with pytest.raises(InputError, match=r"'linear\.bias' is not finite"):
            load(path, as_stored=as_stored)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_class_names_are_kept(tmp_path: Path, suffix: str) -> None:
    plain, named = ours(), ours(classes=("cat", "\udcff", "x" * 300))
    named.save(tmp_path / f"c{suffix}")
    read = load(tmp_path / f"c{suffix}")
    assert read.classes == ("cat", "\udcff", "x" * 200)
    assert match_classes(read.classes, named.classes) == ClassMatch()
    assert read.digest == plain.digest
    ours(classes=("x",) * 10_001).save(tmp_path / f"many{suffix}")
    assert load(tmp_path / f"many{suffix}").classes == ()


@pytest.mark.parametrize("classes", ["cat", 3, [1, 2, 3], {"a": 1}, ["x" * 201], ["x"] * 10_001])
def test_damaged_class_names_are_refused(tmp_path: Path, classes: Any) -> None:
    state = ours().model.network.state_dict()
    about = {"format": "coprobe/1", "arch": "resnet18", "arch_args": ARGS, "classes": classes}
    torch.save({**about, "state_dict": state}, tmp_path / "c.pt")
    with pytest.raises(InputError, match=r"damaged description \(classes\)"):
        load(tmp_path / "c.pt")


def test_a_training_knows_its_classes() -> None:
    from coprobe.core.processes import Processes
    from coprobe.data import load as load_data
    from coprobe.training import Recipe
    from coprobe.training.assembly import assemble

    recipe = Recipe(data="digits", width=2, limit_train=20)
    assembly = assemble(recipe, torch.device("cpu"), Processes(), data=None, skip_bad=False, compiled=False)
    assert assembly.checkpoint.classes == load_data("digits", "train").classes != ()
