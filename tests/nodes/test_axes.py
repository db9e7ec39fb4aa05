"""At which axis channels are, in networks whose sizes give it away wrongly or not at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.swin_transformer import SwinTransformer

import coprobe
from coprobe.errors import InputError
from coprobe.models import Classifier, build
from coprobe.nodes import masked, places, record, set_channel_axis, tapped
from tests.families import transformer

SIDE = 8


class FeaturesLast(nn.Module):
    """As many channels as rows and columns, features first and then last, by ways that no module's class tells."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, SIDE, 3, padding=1), nn.LayerNorm(SIDE)
        self.first, self.last, self.again = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.head = nn.Linear(SIDE, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.conv(x))
        y = self.last(self.norm(x.flatten(2).mT.unflatten(1, (SIDE, SIDE))))
        return self.head(self.again(x + y.permute(0, 3, 1, 2)).mean((2, 3)))


def timm_models(name: str, kind: str, **sizes: object) -> nn.Module:
    module = pytest.importorskip(f"timm.models.{name}")
    return getattr(module, kind)(num_classes=4, **sizes)


def timm_convnext(**more: object) -> nn.Module:
    # GELU has 8 features at 8×8 positions
    return timm_models("convnext", "ConvNeXt", patch_size=1, depths=(1, 1, 1, 1), dims=(2, 4, 4, 4), **more)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "convnext": lambda: build("convnext-atto", width=2, patch=1, num_classes=4),
    "features last": FeaturesLast,
    "transformer": transformer,
    "torchvision convnext": lambda: ConvNeXt([CNBlockConfig(8, 4, 1), CNBlockConfig(4, None, 1)], num_classes=4),
    "torchvision swin": lambda: SwinTransformer([1, 1], 8, [1, 2], [2, 2], [4, 4], num_classes=4),
    "timm convnext": timm_convnext,
    "timm convnextv2": lambda: timm_convnext(use_grn=True, ls_init_value=None),
    "timm convnext of convolutions": lambda: timm_convnext(conv_mlp=True),
    "timm vit": lambda: timm_models(  # 4 tokens × 4 features
        "vision_transformer", "VisionTransformer", img_size=SIDE, patch_size=4, embed_dim=4, depth=1, num_heads=2,
        mlp_ratio=1, class_token=False, global_pool="avg",
    ),
    "timm swin": lambda: timm_models(
        "swin_transformer", "SwinTransformer", img_size=SIDE, patch_size=1, embed_dim=8, depths=(1, 1),
        num_heads=(2, 2), window_size=4,
    ),
    "timm mixer": lambda: timm_models(
        "mlp_mixer", "MlpMixer", img_size=SIDE, patch_size=4, num_blocks=1, embed_dim=4, mlp_ratio=(1, 1)
    ),
}  # fmt: skip

#: A module of each network, and at which axis its output has its channels, by reading the network's code.
PLACES = [
    ("convnext", "stages.0.0.dwconv", 1), ("convnext", "stages.0.0.act", 3), ("convnext", "stages.0.0", 1),
    ("features last", "first", 1), ("features last", "last", 3), ("features last", "again", 1),
    ("transformer", "encoder.layers.encoder_layer_0.mlp.1", 2), ("transformer", "encoder.layers.encoder_layer_0", 2),
    ("torchvision convnext", "features.1.0.block.4", 3), ("torchvision convnext", "features.1.0", 1),
    ("torchvision swin", "features.1.0.attn", 3), ("torchvision swin", "features.1.0.mlp.1", 3),
    ("timm convnext", "stages.0.blocks.0.mlp.act", 3), ("timm convnext", "stages.0.blocks.0", 1),
    ("timm convnextv2", "stages.0.blocks.0.mlp.grn", 3), ("timm convnextv2", "stages.1", 1),
    ("timm convnext of convolutions", "stages.0.blocks.0.mlp.act", 1),
    ("timm vit", "blocks.0.mlp.act", 2), ("timm vit", "blocks.0", 2), ("timm vit", "blocks.0.attn", 2),
    ("timm swin", "layers.0.blocks.0", 3), ("timm swin", "layers.0.blocks.0.mlp.act", 2),
    ("timm mixer", "blocks.0.mlp_channels.act", 2), ("timm mixer", "blocks.0.mlp_tokens.act", 2),
]  # fmt: skip


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


@pytest.mark.parametrize(("name", "path", "axis"), PLACES)
def test_what_is_recorded_is_what_lies_at_the_axis_of_the_channels(name: str, path: str, axis: int) -> None:
    model, x = network(name), torch.rand(3, 3, SIDE, SIDE)
    outputs: list[Tensor] = []
    hook = model.get_submodule(path).register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        logits = model(x)
        hook.remove()
        with record(model, [path, f"{path}:1"]) as seen:
            assert torch.equal(model(x), logits)
    assert len(outputs[0].unique()) > SIDE, "the oracle could not tell the axes apart"
    assert torch.equal(seen[path], outputs[0].movedim(axis, 1))
    assert torch.equal(seen[f"{path}:1"][:, 0], outputs[0].select(axis, 1))
    with torch.no_grad(), masked(model, {path: [1]}), record(model, [path]) as seen:
        model(x)
    assert not seen[path][:, 1].any() and torch.equal(seen[path][:, 0], outputs[0].select(axis, 0))


CONVOLUTION = torch.nn.Conv2d(3, 6, 1)
LINEAR = torch.nn.Linear(6, 6)


@pytest.mark.parametrize(
    ("axis", "function"),
    [
        (1, lambda x: x), (3, lambda x: x.permute(0, 2, 3, 1)), (2, lambda x: x.flatten(2).mT),
        (1, lambda x: x.flatten(1)), (None, lambda x: x.permute(1, 0, 2, 3)),
        (3, lambda x: x.unflatten(3, (2, 3)).permute(0, 2, 4, 1, 3)), (1, lambda x: x.contiguous().view(1, 6, 36)),
        (1, lambda x: F.max_pool2d(x, 3, 2, 1)), (1, lambda x: F.avg_pool2d(x, 3, 2, 1)),
        (1, lambda x: F.adaptive_avg_pool2d(x.contiguous(memory_format=torch.channels_last), 1)),
        (1, lambda x: F.interpolate(x, scale_factor=2)), (1, lambda x: F.pad(x, (1, 1, 2, 0))),
        (1, lambda x: x.mean(2)),
        (1, lambda x: x[:, 2:5]), (1, lambda x: x[:, 2:3]), (None, lambda x: x[:, 2]), (None, lambda x: x.sum(1)),
        (1, lambda x: torch.cat([x, x], 1)), (1, lambda x: torch.cat([x, x], 2)), (2, lambda x: torch.stack([x, x], 1)),
        (1, lambda x: F.channel_shuffle(x, 2)), (1, lambda x: F.glu(x, 1)), (1, lambda x: x.roll(1, 2).flip(3)),
        (1, lambda x: F.hardswish(x) + F.softplus(F.prelu(x, torch.ones(6))) * torch.sigmoid(x.mean((2, 3), True))),
        (1, lambda x: x + torch.rand(6, 6)), (1, lambda x: x.softmax(1)), (1, lambda x: F.unfold(x, 3, padding=1)),
        (3, lambda x: LINEAR(x.permute(0, 2, 3, 1))), (None, LINEAR), (None, lambda x: LINEAR.weight @ x),
        (2, lambda x: LINEAR(x.flatten(2)[..., :6])), (1, lambda x: F.pixel_unshuffle(x, 2)),
        (1, lambda x: x.cumsum(2)),
        (1, lambda x: F.pixel_shuffle(x.repeat(1, 4, 1, 1), 2)), (1, lambda x: x.sort(3)[0]),
        (None, lambda x: x.cumsum(1)),
        (1, lambda x: x.flatten(2).topk(6)[0]), (1, lambda x: torch.fft.irfft2(torch.fft.rfft2(x))),
        (1, lambda x: F.grid_sample(x, torch.zeros(len(x), 6, 6, 2), align_corners=False)),
        (None, lambda x: x + LINEAR(x)), (None, lambda x: x + x.mT.permute(0, 2, 3, 1)),
        (1, lambda x: F.relu_(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).clone().add_(1)),
        (3, lambda x: F.layer_norm(LINEAR(x) + x, [6])), (None, lambda x: F.layer_norm(x, [6])),
        (1, lambda x: F.layer_norm(x, [6, 6])), (1, lambda x: F.group_norm(x, 2)), (1, F.instance_norm),
        (2, lambda x: F.scaled_dot_product_attention(*[x.flatten(2).mT] * 3)),
        (None, lambda x: x.flatten(2).mT @ x.flatten(2)), (None, lambda x: torch.fft.fft(x).real),
        (2, lambda x: (x.flatten(2).mT @ x.flatten(2)).softmax(-1) @ x.flatten(2).mT),
        (2, lambda x: torch.einsum("nchw,hk->nckw", x, torch.rand(6, 6))),
        (1, lambda x: x[..., :5, 2:].amax((2, 3), True)),
        (None, lambda x: torch.as_strided(x, (1, 6, 6), (1, 1, 6))),
    ],
)  # fmt: skip
def test_channels_are_followed(axis: int | None, function: Callable[[Tensor], Tensor]) -> None:
    """Of six channels at 6×6 positions, so that sizes tell nothing."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu = CONVOLUTION, nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(function(self.conv(x)))

    (place,) = [place for place in places(Network(), (3, 6, 6)) if place.path in ("relu", "#relu1", "#relu2")][-1:]
    if axis and len(function(CONVOLUTION(torch.rand(1, 3, 6, 6))).shape) == 2:
        axis = 1
    assert place.axis == axis


WEIGHT = torch.rand(SIDE, 3, 3, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("axis", "function"),
    [
        (1, lambda x: F.conv1d(x.flatten(2), WEIGHT[..., 0])),  # 8 channels at 8×8 positions, not 64 at 8
        (1, lambda x: F.conv1d(x.flatten(1)[:, None], WEIGHT[:, :1, 0], padding=1)),
        (1, lambda x: F.conv2d(x, WEIGHT, padding=1)),
        (1, lambda x: F.conv3d(x[:, :, None], WEIGHT[:, :, None], padding=(0, 1, 1))),
        (1, lambda x: F.conv_transpose2d(x, WEIGHT.transpose(0, 1), padding=1)),
        (1, lambda x: torch.cat([x, F.conv2d(x, WEIGHT[:5], padding=1)], 1)),
        (1, lambda x: (WEIGHT.flatten(1) @ F.unfold(x, 3, padding=1)).unflatten(2, (SIDE, SIDE))),
        (3, lambda x: torch.tensordot(x, WEIGHT[:, :, 0, 0], dims=([1], [1]))),
        (1, lambda x: torch.einsum("oc,nchw->nohw", WEIGHT[:, :, 0, 0], x)),
        (None, lambda x: F.linear(F.conv2d(x, WEIGHT, padding=1), WEIGHT.flatten(1)[:, :SIDE])),  # as wide as the image
        (None, lambda x: F.linear(torch.cat([x] * 4, 1)[:, :SIDE], WEIGHT.flatten(1)[:, :SIDE])),
    ],
)
def test_channels_are_those_of_the_layer_that_makes_them(
    axis: int | None, function: Callable[[Tensor], Tensor]
) -> None:
    class Network(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(function(x))

    (place,) = places(Network(), (3, SIDE, SIDE))
    assert place.axis == axis and (axis is None or place.shape[0] == SIDE)


def test_what_cannot_be_told_is_refused_until_it_is_said() -> None:
    class Tied(nn.Module):
        """A sum of features first and features last."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.mix, self.relu, self.head = nn.Conv2d(3, 4, 2, 2), nn.Linear(4, 4), nn.ReLU(), nn.Flatten()

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.head(self.relu(x + self.mix(x)))

    torch.manual_seed(0)
    network, x = Tied().eval(), torch.rand(2, 3, SIDE, SIDE)
    refusal = (
        "node 'relu': can't tell which axis of its activations (batch×4×4×4) holds the channels; "
        "say --channel-axis relu=AXIS, in Python wrap(…, channel_axis=AXIS)"
    )
    for context in (record(network, ["relu"]), masked(network, {"relu:1": [1]}), tapped(network, "relu")):
        for _ in range(2):
            with pytest.raises(InputError) as error, context if _ == 0 else record(network, ["relu"]):
                network(x)
            assert str(error.value) == refusal
    (place,) = places(network, (3, SIDE, SIDE))
    assert (place.path, place.axis, place.shape) == ("relu", None, (4, 4, 4))
    activation = (network.conv(x) + network.mix(network.conv(x))).relu()
    for said, axis in [(1, 1), ({"relu": 3}, 3), (-1, 3), ({"relu": -2}, 2)]:
        model = coprobe.wrap(network, image_shape=(3, SIDE, SIDE), channel_axis=said).model
        with torch.no_grad(), record(model, ["relu", "head"]) as seen:
            model(x)
        assert torch.equal(seen["relu"], activation.movedim(axis, 1)) and seen["head"].shape == (2, 64)


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        (0, "channel axis 0: write a whole number, not 0, which is the axis of the images"),
        ({"last": True}, "channel axis True: write a whole number, not 0, which is the axis of the images"),
        ({"lost": 1}, "unknown node 'lost'; did you mean last"),
        ({"last:2": 1}, "the axis of 'last:2': leave out the channel"),
        (4, "node 'last': axis 4 of its activations (batch×8×8×8) can't hold the channels; give 1 to 3"),
        ({"last": -4}, "node 'last': axis -4 of its activations (batch×8×8×8) can't hold the channels; give 1 to 3"),
    ],
)
def test_wrong_axes(axis: int | dict[str, int], message: str) -> None:
    model = Classifier(network("features last"))

    def use() -> None:
        set_channel_axis(model, axis)
        with record(model, ["last"]):
            model(torch.rand(1, 3, SIDE, SIDE))

    with pytest.raises(InputError) as error:
        use()
    assert str(error.value).startswith(message)


def test_axes_are_found_out_once_and_leave_no_trace() -> None:
    model, calls = network("features last"), [0]

    def count(module: nn.Module, inputs: object) -> None:
        calls[0] += 1

    model.register_forward_pre_hook(count)
    state = torch.get_rng_state()
    for _ in range(2):
        with record(model, ["last", "last:1", "first:in"]), masked(model, {"again": [0]}):
            model.train()(torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)))
    assert calls == [2 + 2 * 2] and model.training and torch.equal(torch.get_rng_state(), state)


def test_a_module_that_can_not_be_followed_may_declare_its_axis() -> None:
    class Opaque(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(x.numpy() * 2)

    class Declared(Opaque):
        channel_axis = 1

    found = [places(nn.Sequential(kind(), nn.ReLU()), (3, 4, 5))[0].axis for kind in (Opaque, Declared)]
    assert found == [None, 1]


def test_axes_under_inference_mode_and_without_images() -> None:
    model = network("features last")
    with torch.inference_mode(), record(model, ["last"]) as seen:
        model(torch.rand(0, 3, SIDE, SIDE))
    assert seen["last"].shape == (0, SIDE, SIDE, SIDE)
    assert seen.shapes["last"] == (SIDE, SIDE, SIDE)
