"""Files as public code writes them: each loads with no flag and computes what its source computes, bit for bit."""

from __future__ import annotations

import argparse
import copy
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from coprobe.checkpoint import load
from coprobe.models import build

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def network(arch: str = "resnet18", seed: int = 0, **arch_args: Any) -> nn.Module:
    """A narrow network whose batch norms have seen something."""
    torch.manual_seed(seed)
    net = build(arch, **{"width": 2, **arch_args})
    net(torch.rand(4, 3, 32, 32))
    return net.eval()


class Normalize(nn.Module):
    """As in front of many public models, with buffers of its own names and shapes."""

    def __init__(self, names: tuple[str, str] = ("mean", "std"), shape: tuple[int, ...] = (1, 3, 1, 1)) -> None:
        super().__init__()
        self.names = names
        for name, numbers in zip(names, (MEAN, STD), strict=True):
            self.register_buffer(name, torch.tensor(numbers).reshape(shape))

    def forward(self, x: Tensor) -> Tensor:
        mean, std = (getattr(self, name).reshape(1, -1, 1, 1) for name in self.names)
        return (x - mean) / std


class PlainNormalize(nn.Module):
    """Numbers as plain attributes, which no state dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.std = list(MEAN), list(STD)

    def forward(self, x: Tensor) -> Tensor:
        return (x - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]


class Around(Normalize):
    """A model that normalises by buffers of its own and then calls a network."""

    def __init__(self, net: nn.Module, names: tuple[str, str], attribute: str, shape: tuple[int, ...]) -> None:
        super().__init__(names, shape)
        self.attribute = attribute
        setattr(self, attribute, net)

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.attribute)(super().forward(x))


class Attacker(nn.Module):
    """The second holder of the same network in MadryLab's files."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.normalize = Normalize(("new_mean", "new_std"), (3, 1, 1))
        self.model = net


class AttackerModel(nn.Module):
    """What MadryLab's robustness package saves."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.normalizer = Normalize(("new_mean", "new_std"), (3, 1, 1))
        self.model = net
        self.attacker = Attacker(net)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.normalizer(x))


def prefixed(prefix: str, net: nn.Module) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in net.state_dict().items()}


def in_torchvisions_names(net: nn.Module) -> dict[str, Tensor]:
    renamed = {name.replace(".shortcut.", ".downsample."): t for name, t in net.state_dict().items()}
    return {name.replace("linear.", "fc."): tensor for name, tensor in renamed.items()}


def with_unused_block(net: nn.Module) -> dict[str, Tensor]:
    unused = {f"sub_{name}": tensor + 1 for name, tensor in net.state_dict().items() if name.startswith("block1.")}
    return {**net.state_dict(), **unused}


def mobilenet() -> nn.Module:
    from torchvision.models import mobilenet_v3_small

    torch.manual_seed(0)
    return nn.Sequential(Normalize(), mobilenet_v3_small(num_classes=10)).eval()


def inner_wrapper(net: nn.Module) -> dict[str, Tensor]:
    return {name.replace("features.", "features.module."): tensor for name, tensor in net.state_dict().items()}


BEHIND = [
    ("Sequential", lambda: nn.Sequential(Normalize(), network()), "0.mean"),
    ("mu and sigma", lambda: Around(network(), ("mu", "sigma"), "model", (1, 3, 1, 1)), "mu"),
    ("flat mean", lambda: Around(network("preact-resnet18"), ("mean", "std"), "net", (3,)), "mean"),
    ("MadryLab", lambda: AttackerModel(network("resnet50")), "normalizer.new_mean"),
    ("torchvision behind a normaliser", mobilenet, "0.mean"),
]


@pytest.fixture(params=BEHIND, ids=lambda row: row[0])
def behind(request: pytest.FixtureRequest) -> tuple[nn.Module, str]:
    _, make, said = request.param
    return make().eval(), said


def same(read: Any, source: nn.Module) -> None:
    """`read` is in evaluation mode on no meta device, and computes what `source` does."""
    tensors = [*read.model.parameters(), *read.model.buffers()]
    assert not any(t.is_meta for t in tensors) and not any(m.training for m in read.model.modules())
    assert all(p.requires_grad and p.dtype is torch.float32 for p in read.model.parameters())
    with torch.no_grad():
        assert torch.equal(read.model(IMAGES), source(IMAGES))


@pytest.mark.slow
@pytest.mark.parametrize("wrap", ["", "module.", "_orig_mod.module."])
def test_a_normaliser_in_the_file_stays_in_front(behind: tuple[nn.Module, str], tmp_path: Path, wrap: str) -> None:
    source, said = behind
    torch.save({"epoch": 3, "model": prefixed(wrap, source)}, tmp_path / "c.pt")
    read = load(tmp_path / "c.pt")
    same(read, source)
    assert f"'{said}'" in read.normalised_by
    assert read.model.mean == pytest.approx(MEAN)
    told = load(tmp_path / "c.pt", mean=(0.5,) * 3, std=(0.5,) * 3)
    assert told.normalised_by == "--mean/--std" and told.model.mean == (0.5,) * 3
    assert any(f"the file's own '{said}'" in note and "are not used" in note for note in told.notes)


#: What is saved of a network: name, architecture, how, and what `layout`, `notes` and `told` must say.
Payload = Callable[[nn.Module], Any]
SAVED: list[tuple[str, str, Payload, str, str, dict[str, Any]]] = [
    ("bare", "resnet18", lambda n: n.state_dict(), "bare state dict", "", {}),
    ("pytorch-cifar", "vgg11", lambda n: {"net": n.state_dict(), "acc": 91.5, "epoch": 7}, "'net'", "", {"acc": 91.5}),
    (
        "ImageNet example",
        "resnet18",
        lambda n: {
            "epoch": 90,
            "arch": "resnet18",
            "state_dict": prefixed("module.", n),
            "best_acc1": torch.tensor(93.0),
            "optimizer": {"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        },
        "'state_dict', prefix 'module.' removed",
        "",
        {"epoch": 90, "arch": "resnet18", "best_acc1": 93.0, "optimizer lr": 0.1},
    ),
    (
        "Lightning",
        "preact-resnet18",
        lambda n: {
            "epoch": 4,
            "pytorch-lightning_version": "2.4.0",
            "state_dict": prefixed("model.", n),
            "hyper_parameters": {"lr": 0.05, "layers": [1, 2]},
            "callbacks": {"best": {"state": torch.zeros(9, 9)}},
        },
        "prefix 'model.' removed",
        "",
        {"pytorch-lightning_version": "2.4.0", "lr": 0.05},
    ),
    (
        "arguments",
        "resnet34",
        lambda n: {"args": argparse.Namespace(eps=8, attack="pgd"), "model_state_dict": prefixed("_orig_mod.", n)},
        "'model_state_dict', prefix '_orig_mod.' removed",
        "",
        {"eps": 8, "attack": "pgd"},
    ),
    (
        "model and ema",
        "resnet18",
        lambda n: {"ema": prefixed("module.", network(seed=5)), "model": n.state_dict()},
        "'model'",
        "--pick ema",
        {},
    ),
    ("deep", "resnet18", lambda n: {"run": {"nets": [{"last": n.state_dict()}]}}, "'run.nets.0.last'", "", {}),
    ("fastai", "resnet18", lambda n: [n.state_dict(), {"lr": 1}], "'0'", "", {}),
    ("numpy", "resnet18", lambda n: {k: t.numpy() for k, t in n.state_dict().items()}, "bare", "", {}),
    ("TRADES", "wrn-28-10", with_unused_block, "bare", "'sub_block1.*'", {}),
    ("torchvision's names", "resnet18", in_torchvisions_names, "assumed stem='plain'", "", {}),
    (
        "akamaster",
        "resnet20",
        lambda n: {"state_dict": prefixed("module.", n), "best_prec1": 92.6},
        "prefix 'module.' removed",
        "",
        {"best_prec1": 92.6},
    ),
    ("DataParallel inside", "vgg16", inner_wrapper, "wrappers inside", "", {}),
    ("running average", "resnet18", lambda n: AveragedModel(n).state_dict(), "running average of a network", "", {}),
    ("behind something", "resnet18", lambda n: prefixed("1.", n), "'1.'", "something stands before", {}),
    ("pickled whole", "resnet18", lambda n: n, "module 'coprobe.models.resnet.ResNet' pickled whole", "", {}),
    ("pickled under a key", "vgg19", lambda n: {"net": nn.DataParallel(n)}, "pickled whole under 'net'", "", {}),
]


@pytest.mark.parametrize("row", SAVED, ids=[row[0] for row in SAVED])
def test_public_layouts(row: tuple[Any, ...], tmp_path: Path) -> None:
    _, arch, payload, layout, note, told = row
    source = network(arch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(payload(source), tmp_path / "c.pt")
    read = load(tmp_path / "c.pt")
    same(read, source)
    assert read.arch == arch and read.evidence.startswith("names and shapes of ")
    assert layout in read.layout
    assert note in " ".join(read.notes)
    assert told.items() <= read.training_facts.items()
    assert read.normalised_by == "" and read.allowed_mismatch == {}


def test_thin_resnets_with_projections_in_torchvisions_names(tmp_path: Path) -> None:
    """As chenyaofo's and bearpaw's collections have them."""
    source = network("resnet32", shortcut="projected")
    torch.save(in_torchvisions_names(source), tmp_path / "c.pt")
    read = load(tmp_path / "c.pt")
    same(read, source)
    assert (read.arch, read.arch_args["shortcut"]) == ("resnet32", "projected")


def test_hugging_faces_two_files(tmp_path: Path) -> None:
    source = network()
    torch.save(source.state_dict(), tmp_path / "pytorch_model.bin")
    save_file(prefixed("backbone.", source), tmp_path / "model.safetensors", {"format": "pt", "license": "mit"})
    same(load(tmp_path / "pytorch_model.bin"), source)
    read = load(tmp_path / "model.safetensors")
    same(read, source)
    assert read.training_facts == {"license": "mit"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_precisions(tmp_path: Path, dtype: torch.dtype) -> None:
    source = network().to(dtype)
    torch.save(source.state_dict(), tmp_path / "c.pt")
    read = load(tmp_path / "c.pt")
    same(read, source.float())
    assert str(dtype)[6:] in read.layout


def test_numbers_of_a_pickled_normaliser(tmp_path: Path) -> None:
    source = nn.Sequential(PlainNormalize(), network()).eval()
    torch.save(source, tmp_path / "c.pt")
    read = load(tmp_path / "c.pt")
    same(read, source)
    assert read.normalised_by == "'0.mean' and '0.std' of the file"


def test_numbers_beside_the_weights(tmp_path: Path) -> None:
    torch.save({"mean": MEAN, "std": torch.tensor(STD), "model": network().state_dict()}, tmp_path / "c.pt")
    read = load(tmp_path / "c.pt")
    same(read, nn.Sequential(Normalize(), network()).eval())
    assert read.normalised_by == "'mean' and 'std' beside the weights" and read.images_may_decide
    assert load(tmp_path / "c.pt", mean=(0.5,) * 3, std=(0.5,) * 3).normalised_by == "--mean/--std"


#: A mean and a standard deviation beside the weights that are none of images, and what is said of them.
NO_NORMALISATIONS: list[tuple[Any, Any, str]] = [
    (0.83, 0.02, "single numbers, 0.83 and 0.02"),
    (46.2, 1.3, "single numbers, 46.2 and 1.3"),
    (torch.tensor(0.83), torch.tensor(0.02), "single numbers, 0.83 and 0.02"),
    ([0.83, 0.81], [0.02, 0.01], "2 and 2 numbers where images have 3 channels"),
    (torch.rand(5), torch.rand(5), "5 and 5 numbers where images have 3 channels"),
    ([46.2, 45.1, 47.0], [1.3, 0.9, 1.1], "out of range: mean 46.2, 45.1, 47; std 1.3, 0.9, 1.1"),
    ([0.83, 0.81, 0.85], [0.02, 0.01, 0.02], "out of range: mean 0.83, 0.81, 0.85; std 0.02, 0.01, 0.02"),
    ([-1.7, 0.2, 0.4], [0.9, 1.1, 0.8], "out of range: mean -1.7, 0.2, 0.4; std 0.9, 1.1, 0.8"),
    ([0.5, 0.5, float("nan")], [0.2, 0.2, 0.2], "not finite"),
]


@pytest.mark.parametrize(("mean", "std", "said"), NO_NORMALISATIONS, ids=[row[2][:30] for row in NO_NORMALISATIONS])
def test_numbers_beside_the_weights_that_are_no_normalisation(tmp_path: Path, mean: Any, std: Any, said: str) -> None:
    """As those of accuracies over seeds."""
    source = network()
    torch.save({"net": source.state_dict(), "mean": mean, "std": std}, tmp_path / "c.pt")
    read = load(tmp_path / "c.pt")
    same(read, source)
    assert read.model.mean is None and read.normalised_by == "" and read.images_may_decide
    expected = f"'mean' and 'std' beside the weights are no normalisation of images ({said}), and are not used"
    assert expected in read.notes and read.doubts == (expected,)


def test_normalisations_beside_the_weights_that_differ(tmp_path: Path) -> None:
    source = network()
    numbers = {"mean": MEAN, "std": STD, "mu": [0.5] * 3, "sigma": [0.5] * 3}
    torch.save({"net": source.state_dict(), **numbers}, tmp_path / "c.pt")
    read = load(tmp_path / "c.pt")
    same(read, source)
    assert "2 different normalisations" in read.doubts[0] and "none of them is used" in read.doubts[0]


def test_numbers_for_pixels_up_to_255_are_divided_and_said(tmp_path: Path) -> None:
    weights = {**prefixed("1.", network()), "0.mean": torch.tensor(MEAN) * 255, "0.std": torch.tensor(STD) * 255}
    torch.save(weights, tmp_path / "c.pt")
    read = load(tmp_path / "c.pt")
    assert read.model.mean == pytest.approx(MEAN) and read.model.std == pytest.approx(STD)
    assert any("divided by 255" in note for note in read.notes)


def test_one_number_for_all_channels(tmp_path: Path) -> None:
    torch.save(
        {**prefixed("1.", network()), "0.mu": torch.tensor(0.5), "0.sigma": torch.tensor([0.5])}, tmp_path / "c.pt"
    )
    assert load(tmp_path / "c.pt").model.mean == (0.5, 0.5, 0.5)


def test_two_networks_in_one_file(tmp_path: Path) -> None:
    last, best = network(seed=1), network(seed=2)
    torch.save({"last": last.state_dict(), "best": prefixed("module.", best)}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"holds 2 networks \(last, best\); choose one, as in --pick last"):
        load(tmp_path / "c.pt")
    same(load(tmp_path / "c.pt", pick="last"), last)
    same(load(tmp_path / "c.pt", pick="best"), best)
    with pytest.raises(ValueError, match=r"unknown network in the file 'bets'; did you mean best"):
        load(tmp_path / "c.pt", pick="bets")


def test_student_and_teacher_in_one_state_dict(tmp_path: Path) -> None:
    student, teacher = network(seed=1), network("resnet34", seed=2)
    both = {**prefixed("student.", student), **prefixed("teacher.", teacher)}
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in both.items()}}, tmp_path / "c.pt")
    same(load(tmp_path / "c.pt", pick="teacher"), teacher)
    same(load(tmp_path / "c.pt", pick="module.student"), student)
    read = load(tmp_path / "c.pt")
    same(read, student)
    said = "took the network under 'state_dict.module.student'; the file has others: --pick state_dict.module.teacher"
    assert said in read.notes
    same(load(tmp_path / "c.pt", pick="state_dict.module.teacher"), teacher)


def test_two_equals_in_one_state_dict_are_asked_for(tmp_path: Path) -> None:
    one, other = network(seed=1), network(seed=2)
    torch.save({**prefixed("f.", one), **prefixed("g.", other)}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"holds 2 networks \(f, g\); choose one, as in --pick f$"):
        load(tmp_path / "c.pt")
    same(load(tmp_path / "c.pt", pick="g"), other)
    weights = {**prefixed("f.", one), **prefixed("f_ema.", other), "logit_scale": torch.ones(1)}
    torch.save(weights, tmp_path / "d.pt")
    with pytest.raises(ValueError, match=r"holds 2 networks \(f, f_ema\) and 1 other weights \(logit_scale\); choose"):
        load(tmp_path / "d.pt")
    same(load(tmp_path / "d.pt", allow_unexpected=["logit_scale"]), one)
    same(load(tmp_path / "d.pt", pick="f_ema"), other)


def test_all_networks_of_a_file_are_offered(tmp_path: Path) -> None:
    keys = [f"epoch_{number}" for number in range(7)]
    torch.save({key: network(seed=number).state_dict() for number, key in enumerate(keys)}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=rf"holds 7 networks \({', '.join(keys)}\)"):
        load(tmp_path / "c.pt")
    strange = {"a.weight": torch.ones(3, 3), "b.weight": torch.ones(7)}
    torch.save({key: {k: t.clone() for k, t in strange.items()} for key in keys[:4]}, tmp_path / "d.pt")
    with pytest.raises(ValueError, match="--pick epoch_1, --pick epoch_2, --pick epoch_3"):
        load(tmp_path / "d.pt")


@pytest.mark.parametrize("key", ["optimal_model", "sample_model"])
def test_a_network_under_a_key_like_an_optimizers(tmp_path: Path, key: str) -> None:
    source = network()
    torch.save({key: source.state_dict(), "optimizer": {"state": {}, "param_groups": []}}, tmp_path / "c.pt")
    same(load(tmp_path / "c.pt"), source)


def test_one_network_under_two_names_is_one(tmp_path: Path) -> None:
    source = network()
    torch.save({"last": source.state_dict(), "best": copy.copy(source.state_dict())}, tmp_path / "c.pt")
    same(load(tmp_path / "c.pt"), source)


def test_a_network_that_is_not_what_it_seems_a_copy_of(tmp_path: Path) -> None:
    torch.save({**prefixed("model.", network()), **prefixed("attacker.model.", network(seed=3))}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"holds two networks, told apart by 'attacker.model.conv1.weight'"):
        load(tmp_path / "c.pt")


def test_names_that_become_equal_are_refused(tmp_path: Path) -> None:
    weights = network("vgg11").state_dict()
    torch.save(
        {**inner_wrapper(network("vgg11")), "features.0.weight": weights["features.0.weight"]}, tmp_path / "c.pt"
    )
    with pytest.raises(ValueError, match=r"'features.module.0.weight' and 'features.0.weight' are the same weight"):
        load(tmp_path / "c.pt")


FACTORY = """
import torch
from coprobe.models import build

class Own(torch.nn.Module):
    def __init__(self, width=2):
        super().__init__()
        self.register_buffer("mu", torch.full((1, 3, 1, 1), 0.5))
        self.register_buffer("sigma", torch.ones(1, 3, 1, 1))
        self.register_buffer("hidden", torch.full((1,), 2.0), persistent=False)
        self.model = build("resnet18", width=width)

    def forward(self, x):
        return self.model(self.hidden * (x - self.mu) / self.sigma)
"""


def test_a_network_of_ones_own_gets_its_own_numbers(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FACTORY)
    spec = f"{tmp_path / 'net.py'}:Own"
    source = Around(network(), ("mu", "sigma"), "model", (1, 3, 1, 1)).eval()
    torch.save({"state_dict": prefixed("module.", source)}, tmp_path / "c.pt")
    read = load(tmp_path / "c.pt", model=spec)
    assert (read.normalised_by, read.evidence, read.model.mean) == ("inside the network", "--model", None)
    assert (read.arch, read.num_classes, read.in_channels) == (spec, 10, 3)
    with torch.no_grad():
        expected = source.model(2.0 * (IMAGES - source.mu) / source.sigma)
        assert torch.equal(read.model(IMAGES), expected)
    with pytest.raises(ValueError, match=r"\d+ weights don't fit .*conv1.weight is 2×3×3×3 instead of 3×3×3×3"):
        load(tmp_path / "c.pt", model=spec, model_args={"width": 3})


def test_a_factorys_own_weights(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FACTORY)
    read = load("-", model=f"{tmp_path / 'net.py'}:Own")
    assert (read.path, read.container, read.layout) == (None, "none", "the factory's own weights")
    assert read.model(IMAGES).shape == (2, 10) and not read.model.training
    assert load("-", model=f"{tmp_path / 'net.py'}:Own").digest == read.digest
    with pytest.raises(ValueError, match="'-' stands for the weights that --model comes with"):
        load("-")


def test_a_file_cannot_name_code(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FACTORY)
    for arch in (f"{tmp_path / 'net.py'}:Own", "torchvision:resnet18"):
        torch.save({"format": "coprobe/1", "arch": arch, "state_dict": network().state_dict()}, tmp_path / "c.pt")
        with pytest.raises(ValueError, match="name it yourself with --arch or --model"):
            load(tmp_path / "c.pt")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "package"),
    [("timm:test_byobnet", "timm"), ("timm:test_vit", "timm"), ("torchvision:shufflenet_v2_x0_5", "torchvision")],
)
def test_networks_of_libraries(tmp_path: Path, arch: str, package: str) -> None:
    pytest.importorskip(package)
    from coprobe.models.public import public_network

    source = public_network(arch, num_classes=7).eval()
    torch.save({"state_dict": prefixed("module.", source)}, tmp_path / "c.pt")
    read = load(tmp_path / "c.pt", arch=arch, arch_args={"num_classes": 7})
    images = torch.rand(2, *read.image_shape)
    with torch.no_grad():
        assert torch.equal(read.model(images), source(images))
    assert (read.arch, read.num_classes, read.in_channels, read.evidence) == (arch, 7, 3, "--arch")
    assert read.tried_shape and read.model.node_table
    if package == "torchvision":
        assert load(tmp_path / "c.pt").arch == arch


def test_a_network_of_robustbench_needs_no_flag_and_keeps_its_numbers(tmp_path: Path) -> None:
    if importlib.util.find_spec("robustbench") is None:  # its own start-up needs what setuptools no longer has
        pytest.skip("robustbench is not installed")
    from coprobe.models.public import public_network

    source = public_network("robustbench:Wong2020Fast").eval()
    torch.save(source.state_dict(), tmp_path / "c.pt")
    named = load(tmp_path / "c.pt", arch="robustbench:Wong2020Fast")
    read = load(tmp_path / "c.pt")
    assert (named.normalised_by, read.normalised_by) == ("inside the network", "'mu' and 'sigma' of the file")
    assert (named.undecided, read.undecided) == (
        {},
        {"shortcut": ["preactivated", "raw"], "activation": ["relu", "silu", "gelu"]},
    )
    with torch.no_grad():
        assert torch.equal(named.model(IMAGES), source(IMAGES))
        raw = load(tmp_path / "c.pt", arch_args={"shortcut": "raw"}).model(IMAGES)
        # Its pooling adds in another order than ours.
        torch.testing.assert_close(raw, source(IMAGES), rtol=0, atol=1e-6)
