"""Networks in Python as checkpoints: used as they are, and left as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import coprobe
from coprobe.errors import InputError
from coprobe.models import build
from coprobe.nodes import is_guessed, node_table, record

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )


def state(network: nn.Module) -> list[object]:
    tensors = [(name, t.clone(), t.requires_grad) for name, t in network.state_dict(keep_vars=True).items()]
    return [str(tensors), [(name, module.training) for name, module in network.named_modules()]]


def test_it_is_probed_and_left_as_it_was() -> None:
    network = tiny().train()
    next(network.parameters()).requires_grad_(False)
    before = state(network)
    checkpoint = coprobe.wrap(network, ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1)))
    assert state(network) == before
    assert checkpoint.model.network is network
    assert (checkpoint.arch, checkpoint.num_classes, checkpoint.in_channels) == ("Sequential", 5, 3)
    assert (checkpoint.container, checkpoint.path, checkpoint.normalised_by) == ("none", None, "preprocess")
    assert is_guessed(checkpoint.model) and node_table(checkpoint.model)["A"] == "2"


def test_its_digest_is_that_of_the_weights_at_the_time() -> None:
    network = tiny()
    checkpoint = coprobe.wrap(network)
    before = checkpoint.digest
    with torch.no_grad():
        network[0].weight.add_(1)
    assert checkpoint.digest != before == coprobe.wrap(tiny()).digest


@pytest.mark.parametrize("own_table", [False, True])
def test_a_function_or_module_goes_in_front(own_table: bool) -> None:
    network = (build("resnet18", width=2) if own_table else tiny()).eval()
    for preprocess in (lambda x: 2 * x - 1, nn.Hardtanh(0.2, 0.7)):
        checkpoint = coprobe.wrap(network, preprocess)
        with torch.no_grad():
            assert torch.equal(checkpoint.model(IMAGES), network(preprocess(IMAGES)))
            with record(checkpoint.model, ["A"]) as seen:
                checkpoint.model(IMAGES)
        assert seen["A"].min() == 0


def test_a_given_shape_is_a_fact_and_a_found_one_is_not() -> None:
    network = tiny()
    found = coprobe.wrap(network)
    found.check_fit("images", 5, (3, 64, 64))
    with pytest.raises(InputError, match="gives no logits"):
        found.check_fit("images", 5, (3, 2, 2))
    with pytest.raises(InputError, match="trained on 16×16"):
        coprobe.wrap(network, image_shape=(3, 16, 16)).check_fit("images", 5, (3, 64, 64))


def test_it_is_written_and_read_again_by_whoever_names_its_code(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from torchvision.models import shufflenet_v2_x0_5 as make\n")
    made = coprobe.load("-", model=f"{tmp_path / 'net.py'}:make", model_args={"num_classes": 4}, std=(0.5,) * 3)
    for name in ("c.pt", "c.safetensors"):
        made.save(tmp_path / name)
        with pytest.raises(InputError, match="name it yourself with --arch or --model"):
            coprobe.load(tmp_path / name)
        read = coprobe.load(tmp_path / name, model=f"{tmp_path / 'net.py'}:make", model_args={"num_classes": 4})
        assert (read.digest, read.model.std, read.normalised_by) == (made.digest, (0.5,) * 3, "the file")
        assert coprobe.load(tmp_path / name, arch="torchvision:shufflenet_v2_x0_5", arch_args={"num_classes": 4}).digest


def test_wrappers_are_taken_off() -> None:
    network = tiny()
    assert coprobe.wrap(nn.DataParallel(network)).model.network is network


def test_numbers_may_be_lists_and_tensors() -> None:
    for pair in ([[0.5] * 3, [0.25] * 3], (torch.full((3,), 0.5), torch.full((3,), 0.25))):
        checkpoint = coprobe.wrap(tiny(), pair)
        assert (checkpoint.model.mean, checkpoint.model.std) == ((0.5,) * 3, (0.25,) * 3)


def test_a_preprocess_that_takes_some_images_only_finds_them() -> None:
    def gray_only(images: Tensor) -> Tensor:
        assert images.shape[1] == 1
        return images

    assert coprobe.wrap(nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 3)), gray_only).image_shape == (1, 28, 28)


def fails(images: Tensor) -> Tensor:
    raise KeyError("size")


class Tuple(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((3,), "no torch.nn.Module"),
        ((Tuple(),), "instead of a tensor"),
        ((tiny(), "0.5"), "preprocess is a str"),
        ((tiny(), ((0.5,), (0.5,))), "give one number per channel"),
        ((tiny(), ((0.5,) * 3, (0.0,) * 3)), "not positive"),
        ((tiny(), ((0.5,) * 3,)), "preprocess is no pair of two rows of numbers; give"),
        ((tiny(), (0.5, 0.25)), "preprocess is no pair"),
        ((tiny(), ((0.5,) * 3, "abc")), "preprocess is no pair"),
        ((tiny(), (None, None)), "preprocess is no pair"),
        ((tiny(), fails), r"^preprocess fails on images 1×3×32×32 \(KeyError: 'size'\); mend it$"),
        ((tiny(), lambda images: None), "^preprocess gives a NoneType instead of a tensor"),
        ((tiny().half(),), "weights are float16; give it as float32"),
        ((tiny().to("meta"),), "holds no numbers"),
    ],
)
def test_what_is_refused(arguments: tuple, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        coprobe.wrap(*arguments)
    assert "--" not in str(caught.value)
    with pytest.raises(InputError, match="5 logits, not num_classes=10"):
        coprobe.wrap(tiny(), num_classes=10)


def test_a_factory_of_half_precision_is_refused_with_and_without_a_file(tmp_path: Path) -> None:
    make = "from torchvision.models import shufflenet_v2_x0_5\ndef make(): return shufflenet_v2_x0_5(num_classes=4)"
    (tmp_path / "net.py").write_text(f"{make}\ndef half(): return make().half()\n")
    coprobe.load("-", model=f"{tmp_path / 'net.py'}:make").save(tmp_path / "c.pt")
    for path in ("-", tmp_path / "c.pt"):
        with pytest.raises(InputError, match=r"weights are float16; give it as float32, with model.float\(\)"):
            coprobe.load(path, model=f"{tmp_path / 'net.py'}:half")
