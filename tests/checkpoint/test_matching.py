"""Files that are almost those of a network of torchvision: which one, and what differs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from coprobe.checkpoint import load
from coprobe.errors import InputError
from coprobe.models.public import public_network

LOST = "features.3.expand1x1.weight"


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return dict(public_network("torchvision:squeezenet1_1", num_classes=4).state_dict())


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load(path)
    assert len(str(caught.value)) <= 300
    return str(caught.value)


def test_a_lost_weight_is_named_and_may_be_missing(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    torch.save({name: weight for name, weight in weights.items() if name != LOST}, tmp_path / "c.pt")
    said = refusal(tmp_path / "c.pt")
    assert f"nearest is torchvision:squeezenet1_1, where 1 differ (missing {LOST} (64×16×1×1))" in said
    assert f"--allow-missing '{LOST}' does without" in said
    first, second = (load(tmp_path / "c.pt", allow_missing=[LOST]) for _ in range(2))
    assert (first.arch, first.allowed_mismatch) == ("torchvision:squeezenet1_1", {"missing": [LOST]})
    assert first.digest == second.digest
    assert torch.equal(first.model.network.classifier[1].weight, weights["classifier.1.weight"])
    assert first.model.network.state_dict()[LOST].std() > 0


def test_an_extra_and_a_misshapen_weight_are_named(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    torch.save({**weights, "features.scale": torch.ones(2)}, tmp_path / "c.pt")
    said = refusal(tmp_path / "c.pt")
    assert "nearest is torchvision:squeezenet1_1, where 1 differ (unexpected features.scale (2))" in said
    assert load(tmp_path / "c.pt", allow_unexpected=["features.scale"]).num_classes == 4
    torch.save({**weights, LOST: torch.ones(64, 16, 3, 3)}, tmp_path / "c.pt")
    assert f"where 1 differ ({LOST} is 64×16×3×3 instead of 64×16×1×1)" in refusal(tmp_path / "c.pt")


def test_a_long_name_becomes_a_pattern_that_matches(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = public_network("torchvision:shufflenet_v2_x0_5", num_classes=4).state_dict()
    lost = "stage2.0.branch1.1.running_mean"
    torch.save({name: weight for name, weight in state.items() if name != lost}, tmp_path / "c.pt")
    pattern = f"{lost[:29]}*"
    assert f"--allow-missing '{pattern}' does without" in refusal(tmp_path / "c.pt")
    assert load(tmp_path / "c.pt", allow_missing=[pattern]).allowed_mismatch == {"missing": [lost]}


def test_nothing_stays_on_the_meta_device(tmp_path: Path) -> None:
    network = public_network("torchvision:squeezenet1_1", num_classes=4)
    torch.save(network.state_dict(), tmp_path / "c.pt")
    read = load(tmp_path / "c.pt").model.network
    assert not any(tensor.is_meta for tensor in (*read.parameters(), *read.buffers()))


@pytest.mark.parametrize("by_name", [False, True])
def test_a_library_network_that_is_only_looked_at_keeps_the_types_of_the_file(tmp_path: Path, by_name: bool) -> None:
    weights = public_network("torchvision:mobilenet_v3_small", num_classes=7).state_dict()
    half = {name: weight.half() if weight.is_floating_point() else weight for name, weight in weights.items()}
    torch.save(half, tmp_path / "c.pt")
    named = {"arch": "torchvision:mobilenet_v3_small", "arch_args": {"num_classes": 7}} if by_name else {}
    looked_at, loaded = (load(tmp_path / "c.pt", **named, as_stored=as_stored) for as_stored in (True, False))
    assert {p.dtype for p in looked_at.model.parameters()} == {torch.float16}
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert looked_at.digest == loaded.digest
    assert (looked_at.arch, looked_at.arch_args, looked_at.image_shape) == (loaded.arch, loaded.arch_args, (3, 32, 32))
    assert looked_at.model.node_table == loaded.model.node_table != {}
