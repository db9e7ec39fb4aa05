"""Weights in parts, as torch.nn.utils keeps them, are folded into the very numbers that torch computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm

from coprobe.checkpoint import load
from coprobe.checkpoint.key_remap import key_remaps
from coprobe.checkpoint.reparametrised import find_parts
from coprobe.errors import InputError
from coprobe.models import build
from tests.checkpoint.test_candidates import stored

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def old_weight_norm(module: nn.Module, dim: int | None = 0) -> None:
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(module, dim=dim)


def masked(module: nn.Module) -> None:
    prune.random_unstructured(module, "weight", amount=0.4)


def masked_channels(module: nn.Module) -> None:
    prune.ln_structured(module, "weight", amount=0.5, n=2, dim=0)


#: What torch calls it, how it is put on a layer, and what the layout says.
KINDS: list[tuple[str, Callable[[nn.Module], object], str]] = [
    ("weight_norm", old_weight_norm, "weight norm"),
    ("weight_norm of all", lambda module: old_weight_norm(module, None), "weight norm"),
    ("weight_norm by inputs", lambda module: old_weight_norm(module, 1), "weight norm"),
    ("weight_norm as parametrization", parametrizations.weight_norm, "weight norm"),
    ("weight_norm of all as parametrization", lambda m: parametrizations.weight_norm(m, dim=None), "weight norm"),
    ("spectral_norm", spectral_norm, "spectral norm"),
    ("spectral_norm as parametrization", parametrizations.spectral_norm, "spectral norm"),
    ("prune.random_unstructured", masked, "pruning"),
    ("prune.ln_structured", masked_channels, "pruning"),
]


def layers(network: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def network(put: Callable[[nn.Module], object]) -> nn.Module:
    torch.manual_seed(0)
    net = build("resnet20", width=2)
    for _, layer in layers(net):
        put(layer)
    net(torch.rand(4, 3, 16, 16))  # batch norm and the power iteration see something
    return net.eval()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[0])
def test_the_very_numbers_of_torch(tmp_path: Path, kind: tuple[str, Callable[[nn.Module], object], str]) -> None:
    _, put, said = kind
    source = network(put)
    torch.save({"state_dict": {f"module.{name}": t for name, t in source.state_dict().items()}}, tmp_path / "c.pt")
    read = load(tmp_path / "c.pt")
    with torch.no_grad():
        assert torch.equal(read.model(IMAGES), source(IMAGES))
        for name, layer in layers(source):
            assert torch.equal(read.model.network.get_submodule(name).weight, layer.weight)
    assert f"{said} of {len(layers(source))} weights folded" in read.layout


def test_the_second_axis_of_a_transposed_convolution(tmp_path: Path) -> None:
    layer = spectral_norm(nn.ConvTranspose2d(3, 5, 2))
    layer(torch.rand(1, 3, 4, 4))
    layer.eval()(torch.rand(1, 3, 4, 4))
    u, v, original = layer.weight_u, layer.weight_v, layer.weight_orig
    parts = {"up.weight_orig": stored(3, 5, 2, 2), "up.weight_u": stored(5), "up.weight_v": stored(12)}
    (made, _) = find_parts(parts)["up.weight"]
    given = dict(zip(map(id, made.parts), (original, u, v), strict=True))
    assert torch.equal(made.folded(lambda part: given[id(part)].detach()), layer.weight)


def test_bias_and_weight_are_pruned_and_one_layer_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = build("resnet20", width=2).eval()
    prune.random_unstructured(source.linear, "bias", amount=3)
    prune.l1_unstructured(source.layer1[0].conv1, "weight", amount=5)
    torch.save(source.state_dict(), tmp_path / "c.pt")
    read = load(tmp_path / "c.pt")
    with torch.no_grad():
        assert torch.equal(read.model(IMAGES), source(IMAGES))
    assert "pruning of 2 weights folded" in read.layout


def test_half_precision_is_folded_in_float32(tmp_path: Path) -> None:
    source = network(old_weight_norm).half()
    torch.save(source.state_dict(), tmp_path / "c.pt")
    read = load(tmp_path / "c.pt")
    layer = source.linear.float()
    assert torch.equal(read.model.network.linear.weight, torch._weight_norm(layer.weight_v, layer.weight_g, 0))


def test_a_network_that_has_the_parts_itself_gets_them(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom coprobe.models import build\n\n"
        "def net():\n    net = build('resnet20', width=2)\n"
        "    torch.nn.utils.parametrizations.weight_norm(net.linear)\n    return net\n"
    )
    torch.manual_seed(0)
    source = build("resnet20", width=2).eval()
    parametrizations.weight_norm(source.linear)
    torch.save(source.state_dict(), tmp_path / "c.pt")
    read = load(tmp_path / "c.pt", model=f"{tmp_path / 'net.py'}:net")
    assert "folded" not in read.layout and hasattr(read.model.network.linear, "parametrizations")
    with torch.no_grad():
        assert torch.equal(read.model(IMAGES), source(IMAGES))


class Triangular(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu()


def test_a_parametrization_whose_code_is_not_in_the_file_is_named(tmp_path: Path) -> None:
    source = build("resnet20", width=2)
    parametrize.register_parametrization(source.linear, "weight", Triangular())
    torch.save(source.state_dict(), tmp_path / "c.pt")
    with pytest.raises(InputError, match=r"'linear.weight' .* parametrization whose code is not in the file \(take it"):
        load(tmp_path / "c.pt")


def test_parts_that_do_not_go_together() -> None:
    weights = {
        "a_orig": stored(2, 3),
        "a_mask": stored(3, 2),
        "b_g": stored(2, 2),
        "b_v": stored(2, 2),
        "c_g": stored(1),
    }
    found = find_parts(weights)
    assert {name: made.reason for name, (made, _) in found.items()} == {
        "a": "has parts of pruning that don't fit",
        "b": "has parts of weight norm that don't fit",
    }


def test_many_parametrized_names_take_no_longer_than_others() -> None:
    weights = {f"l{number}.parametrizations.weight.original{k}": stored(1) for number in range(5_000) for k in (0, 1)}
    *_, last = key_remaps(weights)
    assert len(last.weights) == 5_000
