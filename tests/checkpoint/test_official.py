"""Official weights: under names of older versions, and in folders of Hugging Face's hub with timm's config.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from coprobe.checkpoint import load
from coprobe.checkpoint.key_remap import key_remaps
from coprobe.errors import InputError
from tests.checkpoint.test_candidates import stored

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def same(read: Any, source: nn.Module) -> None:
    with torch.no_grad():
        assert torch.equal(read.model(IMAGES), source.eval()(IMAGES))


def test_densenet_before_dots_were_forbidden() -> None:
    """The names of the weights at download.pytorch.org, as torchvision's own loader expects them."""
    from torchvision.models import DenseNet

    network = DenseNet(4, (2, 2), 8, num_classes=10)
    names = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    old = [re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name) for name in names]
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    (remap,) = [remap for remap in key_remaps({name: stored(1) for name in old}) if list(remap.weights) == names]
    assert remap.steps == ("DenseNet's old names ('norm.1') in those of today",)


def test_a_vision_transformer_whose_own_loading_renames(tmp_path: Path) -> None:
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    (tmp_path / "net.py").write_text(
        "from torchvision.models import VisionTransformer\n\ndef net():\n"
        "    return VisionTransformer(32, 8, 2, 2, 8, 16, num_classes=10)\n"
    )
    source = VisionTransformer(32, 8, 2, 2, 8, 16, num_classes=10)
    nn.init.normal_(source.heads.head.weight)
    names = {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."}
    old = dict(source.state_dict())
    for new, before in names.items():
        old = {name.replace(new, before): tensor for name, tensor in old.items()}
    assert "encoder.layers.encoder_layer_0.mlp.linear_1.weight" in old
    torch.save({"model": old}, tmp_path / "c.pt")
    read = load(tmp_path / "c.pt", model=f"{tmp_path / 'net.py'}:net")
    same(read, source)
    assert "old names in those that the network gives them" in read.layout


OWN = """
import torch

class Net(torch.nn.Module):
    def __init__(self, computes=False):
        super().__init__()
        self.body = torch.nn.Conv2d(3, 4, 3)
        self.register_buffer("scale", torch.ones(4, 1, 1))
        self.head = torch.nn.Linear(4, 10)
        self.computes = computes

    def _load_from_state_dict(self, weights, prefix, *rest):
        for old, new in (("stem.weight", "body.weight"), ("stem.bias", "body.bias"), ("gain", "scale")):
            if prefix + old in weights:
                tensor = weights.pop(prefix + old)
                weights[prefix + new] = 2 * tensor if self.computes else tensor
        super()._load_from_state_dict(weights, prefix, *rest)

    def forward(self, x):
        return self.head((self.scale * self.body(x)).relu().mean((2, 3)))
"""


def test_a_network_of_ones_own_that_renames_when_it_loads(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    scope: dict[str, Any] = {}
    exec(OWN, scope)
    source = scope["Net"]()
    source.scale += torch.rand(4, 1, 1)
    old = {name.replace("body", "stem").replace("scale", "gain"): t for name, t in source.state_dict().items()}
    torch.save(old, tmp_path / "c.pt")
    read = load(tmp_path / "c.pt", model=f"{tmp_path / 'own.py'}:Net")
    same(read, source)
    assert "scale" in dict(read.model.network.named_buffers())
    with pytest.raises(InputError, match="weights don't fit"):  # a network that computes when it loads isn't followed
        load(tmp_path / "c.pt", model=f"{tmp_path / 'own.py'}:Net", model_args={"computes": True})


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=4)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "resnet10t",
        "num_classes": 4,
        "label_names": ["ant", "bee", "cat", "dog"],
        "pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "input_size": [3, 176, 176]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_timms_folder_needs_no_flag(hub: Path) -> None:
    import timm

    source = timm.create_model("resnet10t", num_classes=4).eval()
    read = load(hub)
    source.load_state_dict(read.model.network.state_dict())
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)))
    with torch.no_grad():
        assert torch.equal(read.model(IMAGES), source((IMAGES - mean) / std))
    assert (read.arch, read.num_classes, read.evidence) == ("timm:resnet10t", 4, "config.json")
    assert (read.normalised_by, read.images_may_decide, read.image_shape) == ("config.json", False, (3, 176, 176))
    assert read.classes == ("ant", "bee", "cat", "dog")
    told = load(hub, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert told.model.mean == (0.5,) * 3 and told.normalised_by == "--mean/--std"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "hf-hub:evil/model"}, "unknown timm network"),
        ({"architecture": "os.system"}, "unknown timm network"),
        ({"model_args": {"pretrained": True}}, "would bring weights"),
        ({"num_classes": 7}, "don't fit timm:resnet10t"),
    ],
    ids=str,
)
def test_what_a_config_may_not_say(hub: Path, change: dict[str, Any], said: str) -> None:
    config = json.loads((hub / "config.json").read_text())
    (hub / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match=said):
        load(hub)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, " " * (5 << 20)], ids=["cut", "deep", "long"])
def test_a_config_that_is_none(hub: Path, text: str) -> None:
    (hub / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config.json: is no configuration in JSON"):
        load(hub)


@pytest.mark.parametrize("said", [{"mean": [0.5], "std": [0.5]}, {"mean": "x", "std": None}, {"mean": [1e999] * 3}, 3])
def test_parts_that_cannot_be_used_are_left_out(hub: Path, said: Any) -> None:
    config = json.loads((hub / "config.json").read_text())
    (hub / "config.json").write_text(json.dumps({**config, "label_names": [1], "pretrained_cfg": said}))
    read = load(hub)
    assert (read.normalised_by, read.classes, read.arch) == ("", (), "timm:resnet10t")


def test_another_librarys_config_is_left_alone(tmp_path: Path) -> None:
    from coprobe.models import build

    save_file(build("resnet20", width=2).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["ResNetForImageClassification"]}))
    assert load(tmp_path).arch == "resnet20"
