"""Files that are almost those of a network of torchvision: which one, and what differs."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch

from coprobe.checkpoint import load
from coprobe.checkpoint.comparison import compare_weights
from coprobe.checkpoint.misfit import fewest_patterns
from coprobe.errors import InputError
from coprobe.models import build
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


def thop(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With what thop registers at every module when it counts operations."""
    places = {"", *(name.rpartition(".")[0] + "." for name in weights)}
    counts = {f"{place}{what}": torch.zeros(1).double() for place in places for what in ("total_ops", "total_params")}
    return {**weights, **counts}


def lightning(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A module with a loss that has weights, two metrics, and a copy of the network."""
    more = {"criterion.weight": torch.ones(4), "train_acc.tp": torch.zeros(4), "train_acc.fp": torch.zeros(4)}
    more |= {"train_acc.confmat": torch.zeros(4, 4), "val_acc.correct": torch.zeros(())}
    return {**{f"model.{name}": weight for name, weight in weights.items()}, **more}


@pytest.mark.parametrize(
    ("made", "hint"),
    [
        (thop, "--allow-unexpected '*total_ops' --allow-unexpected '*total_params' do without, or "),
        (
            lightning,
            "--allow-unexpected 'train_acc.*' --allow-unexpected 'val_acc.correct' --allow-unexpected "
            "'criterion.weight' do without, or ",
        ),
        (
            lambda weights: {**weights, **{f"features.aux.{n}.weight": torch.ones(2, 2) for n in range(40)}},
            "--allow-unexpected 'features.aux.*' does without, or ",
        ),
        (lambda weights: {**weights, "features.[odd]*": torch.ones(2)}, "--allow-unexpected 'features.[[]odd][*]'"),
    ],
    ids=["thop", "lightning", "many", "odd"],
)
def test_one_hint_covers_all_extra_weights(
    tmp_path: Path, weights: dict[str, torch.Tensor], made: Any, hint: str
) -> None:
    torch.save(made(weights), tmp_path / "c.pt")
    _, fault = compare_weights(tmp_path / "c.pt", arch="torchvision:squeezenet1_1", arch_args={"num_classes": 4})
    assert hint in fault
    patterns = re.findall(r"--allow-unexpected '([^']*)'", fault)
    read = load(tmp_path / "c.pt", allow_unexpected=patterns)
    assert read.arch == "torchvision:squeezenet1_1"
    assert torch.equal(read.model.network.classifier[1].weight, weights["classifier.1.weight"])


@pytest.mark.parametrize("made", [thop, lightning])
def test_what_stands_beside_a_network_does_not_hide_which_it_is(
    tmp_path: Path, weights: dict[str, torch.Tensor], made: Any
) -> None:
    torch.save(made(weights), tmp_path / "c.pt")
    _, fault = compare_weights(tmp_path / "c.pt")
    assert "nearest is torchvision:squeezenet1_1" in fault and "without, or name it with --arch" in fault


def test_missing_and_unexpected_in_one_hint(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    extra = {"features.scale": torch.ones(2)}
    torch.save({**{n: w for n, w in weights.items() if n != LOST}, **extra}, tmp_path / "c.pt")
    assert (
        f"--allow-missing '{LOST}' --allow-unexpected 'features.scale' do without"
        in compare_weights(tmp_path / "c.pt")[1]
    )


@pytest.mark.parametrize(
    ("names", "others", "expected"),
    [
        (["a.x", "a.y", "b.x"], ["c.w"], ["a.*", "b.x"]),
        (["a.x", "b.x", "c.x", "x"], ["a.w", "b.w"], ["*x"]),
        (["a.x", "b.x"], ["a.w", "b.w", "b.maxx"], ["a.x", "b.x"]),
        (["a.one", "b.two", "c.three", "d.four", "e.five"], ["f.w"], ["a.one", "b.two", "c.three", "d.four", "e.five"]),
        ([], ["a"], []),
    ],
)
def test_the_fewest_patterns(names: list[str], others: list[str], expected: list[str]) -> None:
    assert fewest_patterns(names, others) == expected
    assert all(any(fnmatchcase(name, pattern) for pattern in expected) for name in names)
    assert not any(fnmatchcase(name, pattern) for name in others for pattern in expected)


WRAPPING = """
import torch
from coprobe.models import build

class Net(torch.nn.Module):
    def __init__(self, head=False):
        super().__init__()
        self.net = build("resnet20", width=2)
        if head:
            self.head = torch.nn.Linear(10, 4)

    def forward(self, x):
        return self.net(x)
"""


def test_weights_that_fit_under_a_prefix(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(WRAPPING)
    torch.manual_seed(0)
    source = build("resnet20", width=2).eval()
    torch.save(source.state_dict(), tmp_path / "c.pt")
    read = load(tmp_path / "c.pt", model=f"{tmp_path / 'net.py'}:Net")
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(read.model(images), source(images)) and "prefix 'net.' added" in read.layout
    with pytest.raises(InputError, match=r"2 weights don't fit .*, with prefix 'net.' added \(missing head.weight"):
        load(tmp_path / "c.pt", model=f"{tmp_path / 'net.py'}:Net", model_args={"head": True})


def test_all_weights_are_listed_on_both_sides(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(WRAPPING)
    weights = dict(build("resnet20", width=2).state_dict())
    weights["linear.weight"] = torch.ones(7, 8)
    del weights["bn1.bias"]
    torch.save(
        {f"module.{name}": weight for name, weight in weights.items()} | {"extra": torch.ones(3)}, tmp_path / "c.pt"
    )
    rows, fault = compare_weights(tmp_path / "c.pt", arch="resnet20")
    assert "3 weights don't fit resnet20" in fault
    by_side = {side: [row for row in rows if row.side == side] for side in ("both", "file", "network", "shapes differ")}
    assert [row.name for row in by_side["file"]] == ["extra"] and by_side["file"][0].shape == "3"
    assert [row.network_name for row in by_side["network"]] == ["bn1.bias"]
    (changed,) = by_side["shapes differ"]
    assert (changed.name, changed.network_name) == ("module.linear.bias", "linear.bias")
    assert (changed.shape, changed.network_shape) == ("10", "7")
    assert len(by_side["both"]) == len(weights) - 1
    torch.save({"a.weight": torch.ones(2, 3)}, tmp_path / "strange.pt")
    rows, fault = compare_weights(tmp_path / "strange.pt")
    assert [(row.name, row.shape, row.side) for row in rows] == [
        ("a.weight", "2×3", "file")
    ] and "fit no known" in fault
