"""`coprobe inspect`: everything a file says of itself, and what images say of its normalisation."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from coprobe.checkpoint import Checkpoint, load
from coprobe.models import Classifier, build
from tests.checkpoint.test_fitting import known_by, made

FACTORY = """
from torch import nn

class Sees(nn.Module):
    'Right where it is given pixels in [0, 1]: the class is how many of ten bright steps the image is above black.'

    def __init__(self, classes=4):
        super().__init__()
        self.stem = nn.Conv2d(3, classes, 1)
        self.act = nn.ReLU()
        with __import__("torch").no_grad():
            for k in range(classes):
                centre = (k + 0.5) / classes
                self.stem.weight[k] = 2 * centre * 10 / 3
                self.stem.bias[k] = 50 - 10 * centre**2

    def forward(self, x):
        return self.act(self.stem(x)).mean((2, 3))
"""


@pytest.fixture
def seen(here):
    """`seen.py:Sees`, which is right on `folder:grey` as it is, and its weights in a file."""
    (here / "seen.py").write_text(FACTORY)
    scope = {}
    exec(FACTORY, scope)
    torch.save(scope["Sees"]().state_dict(), here / "sees.pt")
    for name in range(4):
        folder = here / "grey" / "test" / f"c{name}"
        folder.mkdir(parents=True)
        for number in range(8):
            brightness = round(255 * (name + 0.3 + 0.05 * number) / 4)
            Image.fromarray(np.full((16, 16, 3), brightness, dtype=np.uint8)).save(folder / f"{number}.png")
    return "--model seen.py:Sees"


def facts(result):
    assert result.code == 0, result
    return json.loads(result.out)["facts"]


def test_our_own_file_is_said_in_full(here, coprobe):
    given = facts(coprobe("inspect tiny.pt --json"))
    assert given["container"] == "zip" and given["layout"].startswith("coprobe/2")
    assert (given["architecture"], given["known by"]) == ("resnet18", load("tiny.pt").evidence)
    assert (given["width"], given["num_classes"], given["in_channels"]) == (4, 10, 1)
    assert given["normalisation"] == "none" and given["normalisation known by"] == "the file"
    assert given["trained: eps_train"] == 26 and given["measured: epoch"] == 1
    assert given["digest"] == load("tiny.pt").digest
    text = coprobe("inspect tiny.pt").out
    for key in given:
        assert key in text


def test_somebody_elses_file_says_what_is_not_known(here, coprobe):
    weights = load("tiny.pt").model.network.state_dict()
    told = {"epoch": 7, "best_acc": float("nan"), "args": {"lr": 0.1, "seed": 10**30}}
    torch.save({"net": {f"module.{name}": value for name, value in weights.items()}, **told}, "foreign.pt")
    given = facts(coprobe("inspect foreign.pt --json"))
    assert "net" in given["layout"] and "module." in given["layout"]
    assert given["known by"] == f"names and shapes of {len(weights)} weights"
    assert given["normalisation known by"] == "nothing says it; --data tries it out"
    assert given["the file says: epoch"] == 7 and given["the file says: best_acc"] == "nan"
    assert given["the file says: lr"] == 0.1


def test_numbers_that_json_cannot_hold(here, coprobe):
    args = {"width": 2, "num_classes": 10, "in_channels": 1}
    metrics = {"loss": math.inf, "rows": [math.nan, {"deep": -math.inf}], "huge": 10**40, "none": None}
    Checkpoint(Classifier(build("resnet18", **args)).eval(), "resnet18", args, metrics=metrics).save("odd.pt")
    given = facts(coprobe("inspect odd.pt --json"))
    assert given["measured: loss"] == "inf" and given["measured: rows"] == ["nan", {"deep": "-inf"}]
    assert given["measured: huge"] == "a whole number of 133 bits"
    assert coprobe("inspect odd.pt").code == 0


def test_the_rms_of_a_weight(here, coprobe):
    rows = json.loads(coprobe("inspect tiny.pt --json").out)["rows"]
    weights = load("tiny.pt").model.network.state_dict()
    for row in rows:
        values = weights[row["weight"]].double()
        assert row["shape"] == list(values.shape)
        assert row["rms"] == pytest.approx(values.square().mean().sqrt().item(), rel=1e-12)


def test_the_normalisation_check(here, coprobe, seen):
    line = f"inspect sees.pt {seen} --data folder:grey"
    given = json.loads(coprobe(f"{line} --json").out)["normalisations"]
    assert given["images"] == 32 and given["data"] == "folder:grey"
    assert [one["name"] for one in given["tried"]] == ["none", "the images' own", "ImageNet's", "[-1, 1]"]
    assert given["loaded"] == given["best"] == "none" and given["decided"] == []
    assert given["tried"][0]["accuracy"] == 1 and given["result"].startswith("none fits best (100.0% of 32 images")
    result = coprobe(line)
    assert "result: none fits best" in " ".join(result.out.split()) and "none (as loaded)" in result.out
    assert result.err == ""


def test_a_wrong_normalisation_is_warned_about(here, coprobe, seen):
    wrong = "--mean 0.4914,0.4822,0.4465 --std 0.2471,0.2435,0.2616"
    result = coprobe(f"inspect sees.pt {seen} --data folder:grey {wrong}")
    assert result.code == 0
    said = r"sees.pt: normalised by --mean/--std it is right on "
    assert result.err.startswith(said) and result.err.endswith("with none on 100.0%; leave out --mean and --std\n")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(("given", "warned"), [("", False), ("--mean 0.5,0.5,0.5 --std 0.5,0.5,0.5", True)])
def test_probing_says_so_too(here, coprobe, seen, given, warned):
    line = f"evaluate sees.pt {seen} --data folder:grey --limit 24 --attacks fgsm --device cpu"
    result = coprobe(f"{line} {given}")
    assert result.code == 0
    assert ("with none on 100.0%; leave out --mean and --std" in result.err) is warned
    assert result.err.count("\n") == warned


@pytest.fixture(scope="module")
def pooled(tmp_path_factory):
    """Weights whose names and shapes don't tell that the stem pools, in a file with an accuracy, and their images."""
    place = tmp_path_factory.mktemp("pooled")
    network, data = known_by(made("resnet18", stem="pooled"))
    torch.save({"net": network.state_dict(), "mean": 46.2, "std": 1.3}, place / "pooled.pt")
    for number, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
        folder = place / "patches" / "test" / data.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number:03d}.png")
    return place


def test_what_the_weights_cannot_tell_is_taken_from_the_images_in_every_command(pooled, here, coprobe):
    data = f"{pooled / 'pooled.pt'} --data folder:{pooled / 'patches'}"
    took = "took stem=pooled: so it is right on 79.2% of 96 clean images, and with stem=plain on "
    accuracy = "'mean' and 'std' beside the weights are no normalisation of images (single numbers, 46.2 and 1.3)"
    result = coprobe(f"evaluate {data} --attacks fgsm --limit all --device cpu --json")
    assert result.code == 0 and took in result.err and accuracy in result.err
    given = json.loads(result.out)
    assert given["rows"][0]["accuracy"] == pytest.approx(76 / 96)
    assert given["provenance"]["decided_by_images"] == {"stem": "pooled"}
    (here / "copy.pt").write_bytes((pooled / "pooled.pt").read_bytes())
    transferred = coprobe(f"transfer copy.pt {data} --attacks fgsm --limit 24")
    assert transferred.code == 0 and transferred.err.count("took stem=pooled") == 2
    shown = coprobe(f"inspect {data} --json")
    tried = json.loads(shown.out)["normalisations"]
    assert took in shown.err and tried["best"] == "stem=pooled and none" and tried["loaded"] == "none"
    assert took in tried["decided"][0] and tried["tried"][0]["arguments"] == {}
    told = coprobe(f"evaluate {data} --attacks fgsm --limit 24 --arch resnet18 --arch-arg stem=pooled")
    assert told.code == 0 and "took" not in told.err


def test_the_weights_of_the_factory(here, coprobe, seen):
    own = json.loads(coprobe(f"inspect - {seen} --data folder:grey --json").out)
    assert own["normalisations"]["best"] == "none"
    file = facts(coprobe(f"inspect sees.pt {seen} --json"))
    assert own["facts"]["digest"] == file["digest"] and "file" not in own["facts"]
    assert "--model" in file["known by"]
    assert coprobe(f"evaluate - {seen} --data folder:grey --limit 8 --attacks fgsm").code == 0
    other = facts(coprobe(f"inspect - {seen} --model-arg classes=7 --json"))
    assert other["num_classes"] == 7


def test_weights_that_may_be_missing_are_recorded_in_every_result(here, coprobe):
    weights = load("tiny.pt").model.network.state_dict()
    for name, missing in (("odd.pt", "bn1.bias"), ("too.pt", "bn1.weight")):
        torch.save({**{k: v for k, v in weights.items() if k != missing}, "extra": torch.ones(2)}, name)
    assert coprobe("inspect odd.pt --arch resnet18").code == 2
    allowed = "--arch resnet18 --allow-missing 'bn1.*' --allow-unexpected extra --arch-arg in_channels=1"
    mismatch = {"missing": ["bn1.bias"], "unexpected": ["extra"]}
    given = json.loads(coprobe(f"inspect odd.pt {allowed} --json").out)
    assert given["facts"]["allowed to be missing"] == ["bn1.bias"]
    assert given["facts"]["allowed to be unexpected"] == ["extra"]
    assert given["provenance"]["allowed_mismatch"] == mismatch
    other = {**mismatch, "missing": ["bn1.weight"]}
    for paths, expected in (("odd.pt", mismatch), ("odd.pt too.pt", [mismatch, other])):
        line = f"evaluate {paths} {allowed} --data digits --limit 10 --attacks fgsm --json"
        result = coprobe(line)
        assert result.code == 0, result
        assert json.loads(result.out)["provenance"]["allowed_mismatch"] == expected


def test_all_weights_are_listed_where_they_fit_and_where_not(here, coprobe):
    weights = load("tiny.pt").model.network.state_dict()
    torch.save(
        {**{f"net.{k}": v for k, v in weights.items() if k != "bn1.bias"}, "loss.weight": weights["bn1.bias"]}, "odd.pt"
    )
    result = coprobe("inspect odd.pt --arch resnet18 --weights --json --out weights.csv")
    assert result.code == 0 and "don't fit resnet18" in result.err
    given = json.loads(result.out)
    assert (
        not given["fits"] and "--allow-missing 'bn1.bias' --allow-unexpected 'loss.weight' do without" in given["fault"]
    )
    sides = {row["side"]: (row["in the file"], row["in the network"]) for row in given["rows"]}
    assert sides["file"] == ("loss.weight", "") and sides["network"] == ("", "bn1.bias")
    assert len(given["rows"]) == len(weights) + 1 == (here / "weights.csv").read_text().count("\n") - 1
    fits = coprobe("inspect tiny.pt --weights")
    assert fits.code == 0 and fits.err == "" and all(name in fits.out for name in weights)


def test_one_of_two_networks(here, coprobe):
    weights = load("tiny.pt").model.network.state_dict()
    torch.save({"last": weights, "best": {name: value * 2 for name, value in weights.items()}}, "two.pt")
    digests = {facts(coprobe(f"inspect two.pt --pick {key} --json"))["digest"] for key in ("last", "best")}
    assert len(digests) == 2


def test_bad_images_are_left_out_and_named(here, coprobe, seen):
    (here / "grey" / "test" / "c0" / "0.png").write_bytes(b"no image")
    line = f"evaluate sees.pt {seen} --data folder:grey --attacks fgsm --limit all"
    assert coprobe(line).code == 2
    result = coprobe(f"{line} --skip-bad --json")
    assert result.code == 0 and "left out 1 bad image: " in result.err and "0.png" in result.err
    assert json.loads(result.out)["rows"][0]["n"] == 31
