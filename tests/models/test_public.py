from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from coprobe.errors import InputError
from coprobe.models import mismatches, public
from coprobe.models.public import SOURCES, public_network, public_proposals

#: At least one of each family, and every one that has as many weights as another family's.
RECOGNISED = [
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t"),
    *("mnasnet0_75", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_800mf", "regnet_y_128gf", "resnet18", "resnet34"),
    *("resnet50", "resnext50_32x4d", "resnext101_64x4d", "shufflenet_v2_x1_5", "squeezenet1_1", "swin_s", "swin_v2_t"),
    *("vgg11", "vgg19_bn", "vit_b_32", "vit_l_16", "wide_resnet50_2"),
]


def needs(source: str) -> None:
    """Skip where it is absent; importorskip would run RobustBench's start-up, which needs pkg_resources."""
    if importlib.util.find_spec(source) is None:
        pytest.skip(f"{source} is not installed")


def on_meta(arch: str, **arch_args: Any) -> torch.nn.Module:
    with torch.device("meta"):
        return public_network(arch, **arch_args)


def recognised(weights: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The first proposal that fits."""
    return next((proposal[:2] for proposal in public_proposals(weights) if not mismatches(proposal[2], weights)), None)


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_has_its_unknown_names(source: str) -> None:
    needs(source)
    with pytest.raises(InputError, match=r"^unknown .* 'nonsense'; "):
        public_network(f"{source}:nonsense")


@pytest.mark.parametrize(
    ("arch", "arch_args", "complaint"),
    [
        ("torchvisoin:resnet18", {}, "unknown source of networks 'torchvisoin'; did you mean torchvision"),
        ("resnet", {}, "choose from torchvision, timm, robustbench"),
        ("torchvision:resnet81", {}, "unknown torchvision classifier 'resnet81'; did you mean resnet18"),
        ("torchvision:fcn_resnet50", {}, "unknown torchvision classifier 'fcn_resnet50'"),
        ("torchvision:resnet18", {"wdith": 3}, "with wdith=3 (TypeError"),
        ("torchvision:resnet18", {"wdith": 3}, "it takes num_classes, zero_init_residual, groups, width_per_group"),
        ("torchvision:resnet18", {"groups": 2}, "with groups=2 (ValueError: BasicBlock only supports groups=1"),
        ("torchvision:resnet18", {"groups": "2"}, "can't be built with groups='2'"),
        ("torchvision:resnet18", {"num_classes": 0}, "num_classes=0 is not a positive int"),
        ("torchvision:resnet18", {"num_classes": True}, "num_classes=True is not a positive int"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "weights='DEFAULT' would bring weights; leave it out"),
        ("timm:resnet18", {"pretrained": True}, "pretrained=True would bring weights"),
        ("timm:resnet18", {"checkpoint_path": "x.pt"}, "checkpoint_path='x.pt' would bring weights"),
    ],
)
def test_what_cannot_be_built_says_so_in_a_line(arch: str, arch_args: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError) as caught:
        public_network(arch, **arch_args)
    message = str(caught.value)
    assert complaint in message
    assert "\n" not in message
    assert len(message) <= 300


def test_torchvision_gets_its_arguments_and_random_weights() -> None:
    network = public_network("torchvision:resnet18", num_classes=7)
    assert network.fc.out_features == 7
    other = public_network("torchvision:resnet18", num_classes=7)
    assert not torch.equal(network.fc.weight, other.fc.weight)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_the_slow_initialisation_is_left_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    given: dict[str, Any] = {}
    monkeypatch.setattr(models, "get_model", lambda name, **arguments: given.update(arguments) or torch.nn.Identity())
    public_network(f"torchvision:{name}", aux_logits=False)
    assert given == {"weights": None, "init_weights": False, "aux_logits": False}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECOGNISED)
def test_torchvision_is_recognised_by_names_and_shapes(name: str) -> None:
    weights = on_meta(f"torchvision:{name}", num_classes=5).state_dict()
    assert recognised(weights) == (f"torchvision:{name}", {"num_classes": 5})


def test_the_table_of_sizes_holds_every_classifier_once() -> None:
    from torchvision import models

    names = " ".join(public._BY_SIZE.values()).split()
    twice = [public._BY_SIZE[size] for size in public._WITHOUT_AUXILIARY]
    assert sorted(names) == sorted([*models.list_models(module=models), *twice])


@pytest.mark.parametrize(
    ("name", "arch_args"),
    [
        ("googlenet", {"num_classes": 4, "aux_logits": False}),
        ("inception_v3", {"num_classes": 4, "aux_logits": False}),
        ("vit_b_16", {"num_classes": 4, "image_size": 32}),
    ],
)
def test_arguments_that_shapes_tell_are_found(name: str, arch_args: dict[str, Any]) -> None:
    weights = on_meta(f"torchvision:{name}", **arch_args).state_dict()
    assert recognised(weights) == (f"torchvision:{name}", arch_args)


def test_old_files_without_counters_are_recognised() -> None:
    weights = on_meta("torchvision:resnet18").state_dict()
    old = {name: weight for name, weight in weights.items() if not name.endswith("num_batches_tracked")}
    assert recognised(old) == ("torchvision:resnet18", {"num_classes": 1000})


def test_nothing_else_is_recognised() -> None:
    weights = dict(on_meta("torchvision:resnet50").state_dict())
    assert recognised({}) is None
    assert recognised({name: w for name, w in weights.items() if name != "fc.bias"}) is None
    assert recognised({**weights, "conv1.weight": torch.empty(64, 3, 3, 3, device="meta")}) is None
    assert recognised({**weights, "fc.weight": torch.empty((), device="meta")}) is None
    assert recognised({**weights, "fc.weight": torch.empty(0, 2048, device="meta")}) is None
    vit = dict(on_meta("torchvision:vit_b_16").state_dict())
    assert recognised({**vit, "conv_proj.weight": torch.empty(768, 3, 16, 15, device="meta")}) is None


@pytest.mark.parametrize("size", sorted(public._BY_SIZE))
def test_few_are_compared(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public, "public_network", lambda arch, **given: torch.nn.Identity())
    for start in public._FAMILIES:
        count = len(
            list(public_proposals({"fc.weight": torch.empty(9, 9), **{f"{start}{i}": None for i in range(size)}}))
        )
        assert count <= 6
    assert list(public_proposals({"fc.weight": torch.empty(9, 9), **{f"blocks.{i}": None for i in range(99)}})) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vit_b_32", "squeezenet1_1", "regnet_x_400mf", "googlenet", "maxvit_t"])
def test_one_that_is_one_weight_off_is_proposed(name: str) -> None:
    weights = dict(on_meta(f"torchvision:{name}", num_classes=5).state_dict())
    names = [name for name in weights if not name.endswith("num_batches_tracked")]
    for lost in (names[0], names[len(names) // 2], names[-2], names[-1]):
        shorter = {name: weight for name, weight in weights.items() if name != lost}
        differences = [mismatches(network, shorter) for _, _, network in public_proposals(shorter)]
        assert [difference.name for difference in min(differences, key=len)] == [lost]


@pytest.mark.parametrize("source", ["timm", "robustbench"])
def test_what_is_not_installed_says_how_to_get_it(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, source, None)
    with pytest.raises(InputError, match=rf"^{source} is not installed; pip install 'coprobe\[zoo\]'$"):
        public_network(f"{source}:anything")


def test_a_broken_library_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "timm.py").write_text("import gone_from_setuptools", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(InputError, match=r"timm is installed, but can't be imported \(ModuleNotFoundError: No module"):
        public_network("timm:resnet18")


def test_timm_by_name_and_tag() -> None:
    needs("timm")
    network = on_meta("timm:resnet18.a1_in1k", num_classes=3, in_chans=1)
    assert network.get_classifier().out_features == 3
    assert network.pretrained_cfg["tag"] == "a1_in1k"
    with pytest.raises(InputError, match=r"unknown timm network 'resnet18\.a9_in1k'; did you mean resnet18\.a"):
        public_network("timm:resnet18.a9_in1k")
    with pytest.raises(InputError, match="unknown timm network 'hf-hub:somebody/model'"):
        public_network("timm:hf-hub:somebody/model")
    with pytest.raises(InputError, match="it takes num_classes, in_chans, output_stride"):
        public_network("timm:resnet18", in_channels=1)


def test_robustbench_networks_with_their_own_normalisation() -> None:
    needs("robustbench")
    loaded = "robustbench" in sys.modules
    network = public_network("robustbench:Wong2020Fast")
    assert network.mu.flatten().tolist() == pytest.approx([0.4914, 0.4822, 0.4465])
    assert network.linear.out_features == 10  # CIFAR-10 comes before ImageNet, which has the name too
    assert on_meta("robustbench:imagenet/Linf/Wong2020Fast").model.fc.out_features == 1000
    assert ("robustbench" in sys.modules) == loaded
    with pytest.raises(InputError, match="did you mean Wong2020Fast"):
        public_network("robustbench:Wong2020Fats")


def test_robustbench_networks_that_come_with_downloads_are_refused() -> None:
    needs("robustbench")
    home = torch.hub.get_dir
    with pytest.raises(InputError, match="Standard_R50 is only built with downloaded weights"):
        on_meta("robustbench:imagenet/Linf/Standard_R50")
    assert torch.hub.get_dir is home
