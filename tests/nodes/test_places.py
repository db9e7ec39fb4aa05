"""The places of known and unknown networks, and what is guessed of the latter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coprobe.models import ARCHITECTURES, Classifier, build
from coprobe.nodes import Place, guess_table, is_guessed, masked, node_table, places, record, resolve
from tests.attacks.small import fingerprint
from tests.families import CLASSES, SHAPE, functional_resnet, transformer
from tests.nodes.networks import plain


@pytest.mark.parametrize("arch", list(ARCHITECTURES))
def test_places_of_every_architecture(arch: str) -> None:
    network = build(arch, width=4).train()
    model = Classifier(network, [0.5] * 3, [0.2] * 3)
    before = fingerprint(model)
    found = places(model, (3, 32, 32))
    assert fingerprint(model) == before
    paths = [name for name, module in network.named_modules() if isinstance(module, network.activation)]
    assert [place.path for place in found] == paths
    assert {place.letter: place.path for place in found if place.letter} == network.node_table
    assert [place.letter for place in found if place.letter] == list("ABCDE")
    assert {place.function for place in found} == {network.activation.__name__.lower()} and not is_guessed(model)
    assert {place.axis for place in found} == {network.node_axis}, "what is followed is what is declared"
    with torch.no_grad(), record(model, paths) as seen:
        model(torch.rand(2, 3, 32, 32))
    assert [place.shape for place in found] == [tuple(seen[path].shape[1:]) for path in paths]


def test_places_are_in_the_order_of_execution_and_only_those_that_run() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.node_table = {"A": "pool", "B": "#gelu1"}
            self.last, self.idle, self.first, self.pool = nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.AdaptiveAvgPool2d(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(self.last(F.gelu(self.first(x))))

    assert places(Reversed(), (2, 4, 5)) == [
        Place("first", "", (2, 4, 5), "relu"),
        Place("#gelu1", "B", (2, 4, 5), "gelu"),
        Place("last", "", (2, 4, 5), "relu"),
        Place("pool", "A", (2, 1, 1)),
    ]


def test_a_module_that_is_called_once_gives_the_name_also_if_it_does_more() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(x) * 1.7

    class Both(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x) - F.relu(-x.flip(2))

    found = places(nn.Sequential(Scaled(), Both()), (2, 4, 5))
    assert [place.path for place in found] == ["0", "#relu1", "#relu2"]


def test_places_of_a_model_in_double() -> None:
    assert [place.path for place in places(plain().double(), (2, 4, 5))] == ["2", "5"]


def test_the_guess_for_a_public_resnet_is_the_table_of_ours() -> None:
    theirs, ours = functional_resnet(2), build("resnet18", width=2)
    guess = guess_table(theirs, (3, 32, 32))
    assert guess == {"A": "#relu1"} | {letter: f"layer{n}.1#relu2" for n, letter in enumerate("BCDE", start=1)}
    model = Classifier(theirs, node_table=guess).eval()
    assert node_table(model) == guess and is_guessed(model) and not is_guessed(Classifier(ours, node_table=guess))
    assert [place.letter for place in places(model, (3, 32, 32)) if place.letter] == list("ABCDE")
    letters = {place.letter: place.shape for place in places(ours, (3, 32, 32)) if place.letter}
    assert {place.letter: place.shape for place in places(model, (3, 32, 32)) if place.letter} == letters
    assert (resolve(model, "C:3").call, resolve(model, "C:3").path) == (("relu", 2), "layer2.1")


def features(*strides: int) -> nn.Module:
    """A convolution and a ReLU per stride, then two linear layers with one between them."""
    layers: list[nn.Module] = []
    for into, stride in enumerate(strides, start=1):
        layers += [nn.Conv2d(into, into + 1, 3, stride, 1), nn.ReLU()]
    width = len(strides) + 1
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 7), nn.ReLU(), nn.Linear(7, 2)
    )


@pytest.mark.parametrize(
    ("network", "relus"),
    [
        (features(1, 1, 2, 1), [0, 1, 3]),  # the first one, and the last one of both resolutions
        (features(1, 2, 2, 2, 2), [0, 1, 2, 3, 4]),  # a stem that is the last one of its resolution
        (features(1, 1, 2, 2, 2, 2), [1, 2, 3, 4, 5]),  # five resolutions, and six places without this rule
        (features(1, 2, 2, 2, 2, 2), [0, 1, 2, 3, 4]),
        (features(1, 1, 1, 1, 1, 1, 1, 1, 1), [0, 2, 4, 6, 8]),  # one resolution: evenly
        (features(1, 1, 1), [0, 1, 2]),
    ],
)
def test_what_is_guessed(network: nn.Module, relus: list[int]) -> None:
    expected = [str(2 * relu + 1) for relu in relus]
    assert guess_table(network, (1, 64, 64)) == dict(zip("ABCDE", expected, strict=False))


def test_a_guess_without_positions_and_without_activation_functions() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 7), nn.GELU(), nn.Linear(7, 2))
    assert guess_table(flat, (3, 2, 2)) == {"A": "2", "B": "4"}
    assert guess_table(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (3, 2, 2)) == {}


def test_a_vision_transformer() -> None:
    network, x = transformer().eval(), torch.rand(3, *SHAPE)
    blocks = ["encoder.layers.encoder_layer_0.mlp.1", "encoder.layers.encoder_layer_1.mlp.1"]
    assert places(network, SHAPE) == [Place(path, "", (32, 5), "gelu", 2) for path in blocks]
    assert guess_table(network, SHAPE) == dict(zip("AB", blocks, strict=True))
    names = ["encoder.ln:in", "encoder.ln:in:3", blocks[0], "encoder.layers.encoder_layer_0.mlp#gelu1"]
    with torch.no_grad():
        logits = network(x)
        with record(network, names) as seen:
            assert torch.equal(network(x), logits)
    assert torch.equal(seen[names[2]], seen[names[3]])
    tokens = network.encoder.ln(seen["encoder.ln:in"].transpose(1, 2))
    assert torch.equal(network.heads(tokens[:, 0]), logits)
    assert torch.equal(seen["encoder.ln:in:3"], seen["encoder.ln:in"][:, 3:4])


def test_a_network_for_large_images_that_ends_in_single_pixels() -> None:
    guess = guess_table(features(2, 2, 2), (1, 8, 8))
    assert guess == {"A": "1", "B": "3", "C": "5"}  # 4, 2 and 1 pixels; not "9", behind the pooling


class PixelLayers(nn.Module):
    """Convolutions and, for every pixel, linear layers over the channels at the end, as in ConvNeXt and Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 2, 2)
        self.mlp = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 6))
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.mlp(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(x.mean((2, 3)))


def test_features_behind_linear_layers_over_pixels_are_the_channels() -> None:
    torch.manual_seed(0)
    network, x = PixelLayers().eval(), torch.rand(3, *SHAPE)
    found = {place.path: place.shape for place in places(network, SHAPE)}
    assert found == {"#relu1": (6, 4, 4), "mlp.2": (10, 4, 4)}
    pixels = network.stem(x).relu().permute(0, 2, 3, 1)
    hidden = network.mlp[:3](pixels)
    with torch.no_grad(), record(network, ["mlp.2", "mlp.2:7", "mlp", "stem"]) as seen:
        network(x)
    assert torch.equal(seen["mlp.2"], hidden.permute(0, 3, 1, 2))
    assert torch.equal(seen["mlp.2:7"], seen["mlp.2"][:, 7:8])
    assert torch.equal(seen["mlp"], network.mlp(pixels).permute(0, 3, 1, 2)) and seen["stem"].shape == (3, 6, 4, 4)
    with torch.no_grad(), masked(network, {"mlp.2": [7]}), record(network, ["mlp.3:in"]) as seen:
        network(x)
    hidden[..., 7] = 0
    assert torch.equal(seen["mlp.3:in"], hidden.permute(0, 3, 1, 2))
