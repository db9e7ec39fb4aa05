from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import nn

from coprobe.errors import InputError
from coprobe.models import build
from coprobe.models.shapes import Trial, trial


class Says(nn.Module):
    """Gives what `answer` makes of a batch, and keeps the shapes that it was shown."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        self.answer = answer
        self.shown: list[tuple[int, ...]] = []

    def forward(self, images: torch.Tensor) -> Any:
        self.shown.append(tuple(images.shape))
        return self.answer(images)


def linear(channels: int, side: int, classes: int = 6) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, classes))


def test_a_network_of_ours_takes_its_channels_and_small_images() -> None:
    assert trial(build("resnet18", width=4, num_classes=7, in_channels=1)) == Trial((1, 32, 32), 7)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 64, 64), (3, 299, 299)])
def test_sizes_are_tried_until_one_works(shape: tuple[int, int, int]) -> None:
    assert trial(linear(shape[0], shape[1])) == Trial(shape, 6)


def test_a_given_shape_is_the_only_one_tried() -> None:
    model = Says(lambda images: torch.zeros(1, 4))
    assert trial(model, (3, 40, 24)) == Trial((3, 40, 24), 4)
    assert model.shown == [(1, 3, 40, 24)]
    with pytest.raises(InputError, match=r"no logits for one image of 3×40×24 \(RuntimeError: .*mat1 and mat2"):
        trial(linear(3, 32), (3, 40, 24))


def test_the_message_stays_short_where_many_shapes_were_tried() -> None:
    with pytest.raises(InputError, match=r"3×32×32, 3×28×28, .*, …") as caught:
        trial(linear(5, 7))
    assert len(str(caught.value)) <= 300


def test_the_size_that_a_network_names_comes_first() -> None:
    model = Says(lambda images: torch.zeros(1, 4))
    model.image_size = 48
    assert trial(model).image_shape == (3, 48, 48)
    tagged = Says(lambda images: torch.zeros(1, 4))
    tagged.pretrained_cfg = {"input_size": (3, 40, 56)}
    assert trial(nn.Sequential(nn.Identity(), tagged)).image_shape == (3, 40, 56)


def test_a_vision_transformer_of_torchvision() -> None:
    from torchvision.models.vision_transformer import VisionTransformer

    network = VisionTransformer(16, 8, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8, num_classes=5)
    assert trial(network) == Trial((3, 16, 16), 5)


def test_rows_of_a_reshaped_batch_are_no_answer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(0), nn.Unflatten(0, (-1, 4 * 64 * 64)), nn.LazyLinear(9))
    model(torch.zeros(1, 3, 64, 64))
    assert trial(model) == Trial((3, 64, 64), 9)
    two_rows = Says(lambda images: torch.zeros(2, 9))
    with pytest.raises(InputError, match=r"\(2×9 of torch\.float32, not 1×classes\)"):
        trial(two_rows)


Output = namedtuple("Output", ["logits", "auxiliary"])


@pytest.mark.parametrize(
    ("answer", "called"),
    [
        (lambda images: (torch.zeros(1, 4), images), "a tuple"),
        (lambda images: {"logits": torch.zeros(1, 4)}, "a dict"),
        (lambda images: Output(torch.zeros(1, 4), images), "a Output"),
        (lambda images: None, "a NoneType"),
    ],
)
def test_more_than_logits_is_refused_at_once(answer: Any, called: str) -> None:
    model = Says(answer)
    with pytest.raises(InputError, match=f"gives {called} instead of a tensor of logits; give one that returns"):
        trial(model)
    assert len(model.shown) == 1


@pytest.mark.parametrize(
    ("answer", "described"),
    [
        (lambda images: torch.zeros(()), "a scalar of torch.float32"),
        (lambda images: torch.zeros(4), "4 of torch.float32"),
        (lambda images: torch.zeros(1, 4, 2, 2), "1×4×2×2 of torch.float32"),
        (lambda images: torch.zeros(1, 4, dtype=torch.long), "1×4 of torch.int64"),
        (lambda images: torch.zeros(1, 0), "1×0 of torch.float32"),
    ],
)
def test_what_are_no_logits_is_described(answer: Any, described: str) -> None:
    with pytest.raises(InputError) as caught:
        trial(Says(answer))
    message = str(caught.value)
    assert described in message
    assert "one image of 3×32×32, 3×28×28, 3×64×64, 3×224×224, 3×299×299" in message
    assert len(message) <= 300


def test_nothing_of_the_network_changes() -> None:
    network = build("resnet18", width=4).train()
    network.layer1.eval()
    network.conv1.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    flags = [module.training for module in network.modules()], [p.requires_grad for p in network.parameters()]
    trial(network)
    with pytest.raises(InputError):
        trial(network, (2, 32, 32))
    assert flags == ([m.training for m in network.modules()], [p.requires_grad for p in network.parameters()])
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_another_precision_than_images_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match=rf"weights are {str(dtype)[6:]}; give it as float32, with model\.float\(\)$"):
        trial(linear(3, 32).to(dtype))


def test_a_network_without_numbers_is_refused() -> None:
    with pytest.raises(InputError, match="on the meta device and holds no numbers"):
        trial(linear(3, 32).to("meta"))
    partly = linear(3, 32)
    partly.register_buffer("table", torch.empty(2, device="meta"), persistent=False)
    with pytest.raises(InputError, match="on the meta device"):
        trial(partly)


def test_lazy_weights_are_left_lazy() -> None:
    network = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
    with pytest.raises(InputError, match="lazy weights without a shape; call it on an image once"):
        trial(network)
    assert nn.parameter.is_lazy(network[1].weight)


class HeadFirst(nn.Module):
    """Its head is a convolution that is registered before the stem."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.head = nn.Conv2d(8, 5, 1)
        self.stem = nn.Conv2d(channels, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(x)).mean((2, 3))  # type: ignore[no-any-return]


class SeesOne(nn.Module):
    """Its convolution sees one channel of each image."""

    def __init__(self, view: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 5, 3)
        self.view = view

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.view(x)).mean((2, 3))  # type: ignore[no-any-return]


@pytest.mark.parametrize("shape", [(3, 96, 96), (3, 48, 48), (3, 32, 64), (1, 20, 20), (4, 16, 16), (8, 9, 9)])
def test_the_size_of_the_images_at_hand_is_tried(shape: tuple[int, int, int]) -> None:
    network = nn.Sequential(nn.Conv2d(shape[0], 2, 1), linear(2 * shape[1], 1))
    network[1][1] = nn.Linear(2 * shape[1] * shape[2], 6)
    assert trial(network, at_hand=shape) == Trial(shape, 6)
    with pytest.raises(InputError, match="no logits"):
        trial(network)
    assert trial(nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 6)), at_hand=shape).num_classes


def test_a_network_that_takes_any_size_does_not_depend_on_the_images_at_hand() -> None:
    assert trial(build("resnet18", width=2), at_hand=(3, 48, 48)).image_shape == (3, 32, 32)


def test_images_of_another_shape_than_those_at_hand_will_do() -> None:
    assert trial(linear(3, 32), at_hand=(1, 20, 20)).image_shape == (3, 32, 32)
    assert trial(linear(3, 20), at_hand=(1, 20, 20)).image_shape == (3, 20, 20)  # grey images can be made RGB
    with pytest.raises(
        InputError, match=r"of 3×20×20, 3×32×32, .*mat1 and mat2 shapes cannot be multiplied \(1x1200 and 75x6\)"
    ):
        trial(linear(3, 5), at_hand=(3, 20, 20))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_head_that_stands_before_the_stem_is_no_first_convolution(channels: int) -> None:
    assert trial(HeadFirst(channels)) == Trial((channels, 32, 32), 5)


@pytest.mark.parametrize(
    ("view", "at_hand", "channels"),
    [
        (lambda x: x, None, 1),
        (lambda x: x, (3, 32, 32), 1),
        (lambda x: x.mean(1, keepdim=True), None, 3),
        (lambda x: x.mean(1, keepdim=True), (3, 40, 40), 3),
        (lambda x: x.mean(1, keepdim=True), (1, 28, 28), 1),
        (lambda x: x.mean(1, keepdim=True), (4, 28, 28), 4),
        (lambda x: x[:, :1], None, 3),
        (lambda x: x[:, 1:2], None, 3),
        (lambda x: (x * torch.tensor([0.3, 0.6, 0.1])[:, None, None]).sum(1, keepdim=True), None, 3),
    ],
)
def test_a_network_is_asked_whether_it_takes_more_channels_than_its_first_convolution(
    view: Any, at_hand: Any, channels: int
) -> None:
    assert trial(SeesOne(view), at_hand=at_hand).image_shape[0] == channels
