"""Folders of people's own images through the commands: grey ones, of any size, in another order, with a black one."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

NETWORKS = '''
import torch
from torch import nn


class Grey(nn.Module):
    """Small, and of one channel."""

    def __init__(self, channels=1, classes=3, side=None):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.head = nn.Linear(6 if side is None else 6 * (side[0] // 2) * (side[1] // 2), classes)
        self.side = side

    def forward(self, x):
        x = self.relu(self.conv2(self.relu(self.conv1(x))))
        return self.head(x.mean((2, 3)) if self.side is None else x.flatten(1))


def seeded(**arguments):
    torch.manual_seed(0)
    return Grey(**arguments)


def wide():
    return seeded(channels=3, side=(32, 64))


def narrow():
    return seeded(side=(32, 32))


class Standardised(Grey):
    def forward(self, x):
        deviation = x.std((1, 2, 3), keepdim=True)
        return super().forward((x - x.mean((1, 2, 3), keepdim=True)) / deviation)


def standardised():
    torch.manual_seed(0)
    return Standardised()


class Masked(Grey):
    def forward(self, x):
        return super().forward(x).masked_fill(torch.tensor([False, False, False, True, True]), -torch.inf)


def masked():
    torch.manual_seed(0)
    return Masked(classes=5)
'''
CLASSES = ("circle", "line", "square")


def drawn(number, side=(14, 14)):
    """A grey image: a brighter patch whose place and size depend on the number, on a dark ground of noise."""
    pixels = np.random.default_rng(number).integers(0, 60, side, dtype=np.uint8)
    top, left = number % 5, number % 7
    pixels[top : top + 4 + number % 3, left : left + 3 + 2 * (number % 3)] += 150
    return pixels


def draw(root, count=12, mode="L", classes=CLASSES, side=(14, 14)):
    for number in range(count):
        name = classes[number % len(classes)]
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn(number, side)).convert(mode).save(root / name / f"{number:02}.png")
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of grey images, networks, and weights for one of them."""
    place = tmp_path_factory.mktemp("own")
    (place / "nets.py").write_text(NETWORKS)
    draw(place / "grey")
    namespace = {}
    exec(compile(NETWORKS, "nets.py", "exec"), namespace)
    weights = namespace["seeded"]().state_dict()
    torch.save(weights, place / "grey.pt")
    return place


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


HOW = "--model nets.py:seeded --data folder:grey --eps 8"
QUICK = "--attacks fgsm,pgd:2"


@pytest.mark.parametrize(
    ("command", "holds"),
    [
        (
            "inspect grey.pt --model nets.py:seeded --data folder:grey",
            "normalisations on 12 clean images of folder:grey",
        ),
        ("nodes grey.pt --model nets.py:seeded", "relu"),
        (f"activations grey.pt {HOW} --attack pgd:2 --out out.csv --plot out.png", "V_act of the whole node"),
        (f"mask grey.pt {HOW} {QUICK} --attack pgd:2 --percent 50 --out out.csv --plot out.png", "variance"),
        (f"increments grey.pt {HOW} --attack pgd:2 --out out.csv --plot out.png", "A"),
        (f"evaluate grey.pt {HOW} {QUICK} --out out.csv --plot out.png", "PGD-2"),
        (f"transfer grey.pt - {HOW} {QUICK} --out out.csv --plot out.png", "itself, white box"),
        (f"diagnose grey.pt {HOW} --attack pgd:2 --out out.csv", "accuracy (%), folder:grey, n = 12"),
        (f"figure 3 grey.pt {HOW} --out .", ""),
    ],
    ids=lambda text: text.split()[0] if text else "",
)
def test_grey_images_through_every_command(here, coprobe, command, holds):
    result = coprobe(command)
    assert result.code == 0, result.err
    assert holds in " ".join(result.out.split())
    assert "Traceback" not in result.err
    for name in [word for word in command.split() if word.startswith("out.")]:
        assert (here / name).stat().st_size > 0


def accuracy(here, coprobe, command):
    """The clean accuracy that a command finds, and what it says."""
    result = coprobe(f"evaluate {command} --attacks fgsm --json")
    assert result.code == 0, result.err
    rows = pd.DataFrame(json.loads(result.out)["rows"])
    return float(rows[rows["attack"] == "clean"]["accuracy"].iloc[0]), result.err


def by_hand(here, numbers, weights="grey.pt", channels=1):
    """The share of images that the network gets right, image by image."""
    namespace = {}
    exec(compile(NETWORKS, "nets.py", "exec"), namespace)
    network = namespace["Grey"](channels)
    network.load_state_dict(torch.load(here / weights, weights_only=True))
    right = 0
    for number in numbers:
        x = torch.from_numpy(drawn(number))[None, None].repeat(1, channels, 1, 1).float() / 255
        right += int(network(x).argmax()) == number % 3
    return right / len(numbers)


def test_the_accuracy_is_that_of_one_channel(here, coprobe):
    expected = by_hand(here, range(12))
    assert accuracy(here, coprobe, f"grey.pt {HOW}")[0] == pytest.approx(expected)
    # The same pictures saved as RGB: the network takes one channel, so they are made grey, exactly.
    draw(here / "rgb", mode="RGB")
    found, said = accuracy(here, coprobe, "grey.pt --model nets.py:seeded --data folder:rgb --eps 8")
    assert found == pytest.approx(expected)
    assert "the model takes grey images, so those in colour are made grey" in said


def test_a_network_of_three_channels_sees_grey_images_as_before(here, coprobe):
    command = "- --model nets.py:seeded --model-arg channels=3 --eps 8"
    draw(here / "rgb", mode="RGB")
    grey, coloured = (accuracy(here, coprobe, f"{command} --data folder:{name}")[0] for name in ("grey", "rgb"))
    assert grey == coloured


@pytest.mark.parametrize(("channels", "data"), [(1, "folder:grey"), (3, "folder:grey"), (1, "folder:rgb")])
def test_in_python_the_images_suit_the_network_too(here, channels, data):
    from coprobe import Probe

    draw(here / "rgb", mode="RGB")
    namespace = {}
    exec(compile(NETWORKS, "nets.py", "exec"), namespace)
    network = namespace["seeded"](channels=channels)
    torch.save(network.state_dict(), here / "mine.pt")
    probe = Probe(network, data, epsilon=8 / 255, say=lambda text: None)
    assert probe.dataset.image_shape == (channels, 14, 14)
    expected = by_hand(here, range(12), "mine.pt", channels)
    assert probe.evaluate(["fgsm"]).accuracy("clean") == pytest.approx(expected)


def test_parquet_files_keep_one_channel_too(here, coprobe):
    from tests.cli.parquet import write_grey

    write_grey(here / "test-0.parquet", [drawn(number) for number in range(12)], [n % 3 for n in range(12)])
    found, _ = accuracy(here, coprobe, "grey.pt --model nets.py:seeded --data parquet:. --eps 8")
    assert found == pytest.approx(by_hand(here, range(12)))


def test_a_head_for_32_by_64_is_shown_images_of_that_size(here, coprobe):
    assert "no logits" in coprobe("nodes - --model nets.py:wide").err
    result = coprobe("evaluate - --model nets.py:wide --data folder:grey --image-size 32x64 --eps 8 --attacks fgsm")
    assert result.code == 0, result.err
    assert "images of 32×64" in result.err
    result = coprobe("evaluate - --model nets.py:wide --data folder:grey --eps 8 --attacks fgsm")
    assert result.code == 2
    assert "no logits for one image of" in result.err
    result = coprobe("evaluate - --model nets.py:narrow --data folder:grey --eps 8 --attacks fgsm --image-size 33")
    assert result.code == 2
    assert result.err.rstrip().endswith(", or pass --image-size 32x32, which it takes")


def test_classes_are_matched_by_name(here, coprobe):
    order = ["square", "circle", "line"]  # of the logits
    weights = torch.load(here / "grey.pt", weights_only=True)
    rows = [CLASSES.index(name) for name in order]
    moved = {name: w[rows] if name.startswith("head.") else w for name, w in weights.items()}
    torch.save({"state_dict": moved, "class_to_idx": {name: k for k, name in enumerate(order)}}, here / "moved.pt")
    found, said = accuracy(here, coprobe, f"moved.pt {HOW}")
    assert found == pytest.approx(by_hand(here, range(12)))
    assert "so labels are matched by name" in said
    torch.save({"state_dict": moved, "classes": ["square", "disc", "stroke"]}, here / "other.pt")
    result = coprobe(f"evaluate other.pt {HOW} --attacks fgsm")
    assert result.code == 2
    assert "classes circle, line are none of the model's; call them as it does (disc, stroke)" in result.err


@pytest.mark.parametrize("command", ["evaluate", "diagnose", "activations", "mask", "increments"])
def test_a_black_image_is_named_and_left_out_on_request(here, coprobe, command):
    Image.fromarray(np.zeros((14, 14), dtype=np.uint8)).save(here / "grey" / "line" / "black.png")
    quick = {"evaluate": "--attacks fgsm", "mask": "--attacks fgsm --attack pgd:2"}.get(command, "--attack pgd:2")
    how = f"- --model nets.py:standardised --data folder:grey --eps 8 {quick}"
    result = coprobe(f"{command} {how}")
    assert result.code == 2
    assert (
        "folder:grey (test): the model's logits are not finite for 1 of 13 images ('line/black.png'), and are for the "
        "others; remove what it can't judge, or pass --skip-bad"
    ) in result.err
    result = coprobe(f"{command} {how} --skip-bad")
    assert result.code == 0, result.err
    assert "left out 1 of 13 images ('line/black.png'), as the model's logits are not finite" in result.err
    assert "n = 12" in result.out


def test_left_out_images_change_nothing_for_the_others(here, coprobe):
    whole = accuracy(here, coprobe, "- --model nets.py:standardised --data folder:grey --eps 8")[0]
    Image.fromarray(np.full((14, 14), 7, dtype=np.uint8)).save(here / "grey" / "circle" / "00a.png")
    command = "- --model nets.py:standardised --data folder:grey --eps 8 --skip-bad"
    assert accuracy(here, coprobe, command)[0] == whole


def test_classes_that_a_network_rules_out_are_no_fault_of_its_weights(here, coprobe):
    draw(here / "five", 20, classes=("a", "b", "c", "d", "e"))
    result = coprobe("evaluate - --model nets.py:masked --data folder:five --eps 8 --attacks fgsm,pgd:2,cw:2,apgd-ce")
    assert result.code == 0, result.err
    assert "not finite" not in result.err
    assert coprobe("diagnose - --model nets.py:masked --data folder:five --eps 8 --attack pgd:2").code == 0


def test_an_image_that_gives_no_finite_logit_at_all_is_still_a_fault():
    from coprobe.models.classifier import usable

    inf, nan = float("inf"), float("nan")
    logits = torch.tensor([[1, -inf, 0], [-inf, -inf, -inf], [nan, 1, 0], [inf, 1, 0], [-inf, 2, -inf], [1, 2, 3]])
    assert usable(logits).tolist() == [True, False, False, False, True, True]
