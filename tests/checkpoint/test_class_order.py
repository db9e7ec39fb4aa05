"""Classes matched by name: accuracy is that of the model, in whatever order a folder sorts its classes."""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coprobe import Checkpoint, Probe, load
from coprobe.checkpoint.class_order import ClassMatch, match_classes
from coprobe.data import Dataset
from coprobe.errors import InputError
from coprobe.models import build

SORTED = ("cat", "dog", "frog", "ship")
#: The classes in the order of the logits.
MODELS = ("ship", "cat", "frog", "dog")
TRUE = torch.tensor([0, 1, 2, 3] * 2)


class Brightness(nn.Module):
    """Logit k is the largest for images of brightness k / 3."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.same = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return -(self.relu(x).mean((1, 2, 3))[:, None] - torch.arange(4) / 3).abs() + 0 * self.same(x).mean()


def images(classes: tuple[str, ...], order: tuple[str, ...] = MODELS) -> Dataset:
    """Images of brightness k / 3 for class `order[k]`, with labels by `classes`."""
    labels = torch.tensor([classes.index(order[k]) for k in TRUE if order[k] in classes])
    shown = torch.tensor([k * 85 for k in TRUE if order[k] in classes], dtype=torch.uint8)
    return Dataset(shown[:, None, None, None].expand(-1, 1, 8, 8).contiguous(), labels, classes, "made", "test")


def model(classes: tuple[str, ...] = MODELS, path: str | None = None) -> Checkpoint:
    from coprobe import wrap

    wrapped = wrap(Brightness(), image_shape=(1, 8, 8))
    return replace(wrapped, classes=classes, path=Path(path) if path else None)


def probe(classes: tuple[str, ...], own: tuple[str, ...] = MODELS) -> tuple[Probe, list[str]]:
    said: list[str] = []
    return Probe(model(own), images(classes), epsilon=1 / 255, say=said.append), said


def accuracy(of: Probe) -> float:
    return of.evaluate(("clean",)).accuracy("clean")


def test_labels_are_matched_by_name_and_it_is_said() -> None:
    matched, said = probe(SORTED)
    assert accuracy(matched) == 1
    assert said[0] == (
        "the model has its classes in another order ('cat' is label 0 of the images and logit 1 of the model), so "
        "labels are matched by name"
    )
    unnamed, said = probe(SORTED, ())
    right = (images(SORTED).labels == TRUE).float().mean()
    assert accuracy(unnamed) == pytest.approx(float(right))
    assert right < 1
    assert not any("match" in one for one in said)


def test_classes_in_the_models_order_stay_as_they_are() -> None:
    alike, said = probe(MODELS)
    assert alike.dataset.digest() == images(MODELS).digest()
    assert accuracy(alike) == 1
    assert not any("class" in one for one in said)


def test_some_of_the_models_classes_will_do() -> None:
    few, said = probe(("dog", "ship"))
    assert accuracy(few) == 1
    assert said[0] == (
        "the images have 2 of the model's 4 classes ('dog' is label 0 of the images and logit 3 of the model), so "
        "labels are matched by name"
    )


def test_each_model_of_a_transfer_is_judged_by_its_own_order() -> None:
    own = ("frog", "ship", "dog", "cat")
    other = replace(model(own, "other"), model=model().model)
    other.model.network = Permuted(other.model.network, [MODELS.index(name) for name in own])
    source = Probe(model(path="source"), images(SORTED), epsilon=1 / 255, say=lambda text: None)
    evaluation = source.transfer([other], ("clean",))
    assert evaluation.frame["accuracy"].tolist() == [1, 1]


def test_a_target_without_names_keeps_the_order_of_the_images() -> None:
    """Not that of the source, into which these were brought."""
    target = replace(model(SORTED, "target"), classes=())
    target.model.network = Permuted(target.model.network, [MODELS.index(name) for name in SORTED])
    source = Probe(model(path="source"), images(SORTED), epsilon=1 / 255, say=lambda text: None)
    assert source.dataset.classes == MODELS
    assert source.transfer([target], ("clean",)).frame["accuracy"].tolist() == [1, 1]


class Permuted(nn.Module):
    """A network that gives its logits in another order."""

    def __init__(self, network: nn.Module, order: list[int]) -> None:
        super().__init__()
        self.network, self.order = network, order

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[:, self.order]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("own", "theirs", "places"),
    [
        (MODELS, SORTED, (1, 3, 2, 0)),
        (("T - shirt / top", "Ankle boot"), ("ankle_boot", "t-shirt/top"), (1, 0)),
        (("C++", "C", "Java"), ("Java", "C", "C++"), (2, 1, 0)),  # apart by their punctuation alone
        (("0", "1", "2", "10"), ("0", "1", "10", "2"), (0, 1, 3, 2)),  # sorted as text
        (("a", "b", "automobile"), ("b", "car", "a"), (1, 2, 0)),  # the only one left
    ],
)  # fmt: skip
def test_names_that_tell(own: tuple[str, ...], theirs: tuple[str, ...], places: tuple[int, ...]) -> None:
    match = match_classes(own, theirs)
    assert match.places == places
    assert "matched by name" in match.sentence
    assert ("'car' is taken for 'automobile', the only one left" in match.sentence) == ("car" in theirs)


@pytest.mark.parametrize(
    ("own", "theirs"),
    [
        ((), ("cat", "dog")),
        (("cat", "dog"), ()),
        (("cat", "dog"), ("cat", "dog")),
        (("T - shirt / top", "Ankle boot"), ("t-shirt/top", "ankle_boot")),
        (("0", "1"), ("cat", "dog")),
        (("0 - zero", "1 - one"), ("0", "1")),
        (("1", "2", "3"), ("0", "1", "2")),  # labels without names
        (("0", "1", "2"), ("0", "1")),
        (("crane", "crane", "dog"), ("crane", "crane", "dog")),
    ],
)
def test_names_that_do_not_contradict(own: tuple[str, ...], theirs: tuple[str, ...]) -> None:
    assert match_classes(own, theirs) == ClassMatch()


def test_other_classes_are_one_sentence() -> None:
    match = match_classes(("c0", "c1", "c2", "c3"), ("dog0", "\x1b[2J", "d" * 500))
    assert match == ClassMatch(
        None,
        f"the images' classes are dog0, \\x1b[2J, {'d' * 29}…, and the model was trained on c0, c1, c2, …; "
        "labels may mean other things",
    )


def test_names_that_do_not_match_are_named() -> None:
    match = match_classes(("automobile", "cat", "truck"), ("car", "cat", "lorry"))
    assert match == ClassMatch(
        None,
        "the images' classes car, lorry are called automobile, truck by the model, and all others alike; labels are "
        "taken to mean the same",
    )
    with pytest.raises(
        InputError, match=r"classes car, lorry are none of the model's; call them as it does \(truck, automobile\)"
    ):
        match_classes(("cat", "truck", "dog", "automobile"), ("car", "cat", "dog", "lorry"))


class Args(argparse.Namespace):
    """As a training script keeps its arguments."""


NAMES = list(MODELS)
BY_NAME = {name: number for number, name in enumerate(MODELS)}
BY_NUMBER = dict(enumerate(MODELS))


@pytest.mark.parametrize(
    "entry",
    [
        {"class_to_idx": BY_NAME},
        {"class_to_idx": OrderedDict(sorted(BY_NAME.items()))},
        {"idx_to_class": BY_NUMBER},
        {"idx_to_class": {str(number): name for number, name in reversed(BY_NUMBER.items())}},
        {"classes": NAMES},
        {"class_names": tuple(NAMES)},
        {"id2label": BY_NUMBER, "label2id": BY_NAME},
        {"config": {"id2label": {str(number): name for number, name in BY_NUMBER.items()}}},
        {"hyper_parameters": {"class_names": NAMES}},
        {"args": Args(classes=NAMES)},
        {"meta": {"CLASSES": tuple(NAMES)}},
    ],
    ids="-".join,
)
def test_names_are_read_wherever_public_code_puts_them(tmp_path: Path, entry: dict[str, Any]) -> None:
    assert stored(tmp_path, entry).classes == MODELS


@pytest.mark.parametrize(
    "entry",
    [
        {"classes": 4},
        {"classes": [0, 1, 2, 3]},
        {"class_to_idx": {"cat": 1, "dog": 2, "frog": 3, "ship": 4}},
        {"class_to_idx": {"cat": 0, "dog": 0, "frog": 1, "ship": 2}},
        {"class_to_idx": {"cat": [0], "dog": 1}},
        {"id2label": {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2", 3: "LABEL_3"}},
        {"idx_to_class": {0: "cat", 1: None, 2: "frog", 3: "ship"}},
    ],
    ids=str,
)
def test_what_is_no_list_of_names_is_passed_over(tmp_path: Path, entry: dict[str, Any]) -> None:
    read = stored(tmp_path, entry)
    assert read.classes == ()
    assert read.notes == ()


def test_names_that_contradict_each_other_or_the_logits_are_not_used(tmp_path: Path) -> None:
    read = stored(tmp_path, {"class_to_idx": BY_NAME, "classes": sorted(NAMES)})
    assert read.classes == ()
    assert read.notes == ("its 'class_to_idx' and 'classes' name the classes differently, so neither is used",)
    read = stored(tmp_path, {"class_names": [*NAMES, "background"]})
    assert read.classes == ()
    assert read.notes == ("its 'class_names' names 5 classes for 4 logits, so it is not used",)


@pytest.mark.parametrize("arch", [None, "resnet18"])
def test_a_configuration_beside_the_file_names_classes_unless_the_file_does(tmp_path: Path, arch: str | None) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    stored(folder, {})
    (folder / "c.pt").rename(folder / "pytorch_model.bin")
    config = {"architectures": ["ResNet"], "id2label": {str(number): name for number, name in BY_NUMBER.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    assert load(folder, arch=arch).classes == MODELS
    assert load(folder / "pytorch_model.bin", arch=arch).classes == ()
    stored(folder, {"classes": ["a", "b", "c", "d"]})
    (folder / "c.pt").replace(folder / "pytorch_model.bin")
    assert load(folder, arch=arch).classes == ("a", "b", "c", "d")


def stored(folder: Path, entry: dict[str, Any]) -> Checkpoint:
    torch.manual_seed(0)
    weights = build("resnet18", width=2, num_classes=4, in_channels=1).state_dict()
    torch.save({"state_dict": weights, **entry}, folder / "c.pt")
    return load(folder / "c.pt")


def test_images_that_suit_one_model_alone_are_refused_for_a_transfer() -> None:
    from coprobe import wrap

    dataset = replace(images(SORTED), names=tuple(map(str, range(8))))
    rgb = replace(wrap(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())), path="b")
    source = Probe(model((), "a"), dataset, epsilon=1 / 255, say=lambda text: None)
    assert Probe(rgb, dataset, say=lambda text: None).dataset.image_shape == (3, 8, 8)
    with pytest.raises(InputError, match=r"made has images of 1 channels and the model takes 3"):
        source.transfer([rgb], ("clean",))
