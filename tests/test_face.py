"""The first lines that a person types: whatever they have of a model and of images is probed, and what is assumed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import coprobe
from coprobe.errors import InputError
from tests.toys import EPSILON, Overfitted, checkpoint, grey

IMAGES = torch.full((12, 3, 8, 8), 128 / 255)
LABELS = torch.zeros(12, dtype=torch.int64)
MODELS: dict[str, Callable[[], Any]] = {"a network": Overfitted, "a checkpoint": lambda: checkpoint(Overfitted())}
FORMS: dict[str, Any] = {
    "a pair": (IMAGES, LABELS),
    "arrays": (IMAGES.numpy(), LABELS.numpy()),
    "a torch data set": TensorDataset(IMAGES, LABELS),
    "a loader": DataLoader(TensorDataset(IMAGES, LABELS), batch_size=5),
    "a data set": grey(12),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model", MODELS)
def test_every_form_of_model_and_images_gives_the_same_numbers(model: str, form: str) -> None:
    probe = coprobe.Probe(MODELS[model](), FORMS[form], EPSILON, say=lambda text: None)
    evaluation = probe.evaluate(("fgsm", "pgd:3"))
    wanted = coprobe.Probe(checkpoint(Overfitted()), grey(12), EPSILON).evaluate(("fgsm", "pgd:3"))
    pd.testing.assert_frame_equal(evaluation.frame, wanted.frame)
    assert evaluation.frame.attrs["data_digest"] == wanted.frame.attrs["data_digest"]
    assert probe.dataset.num_classes == 10


def test_a_file_and_a_name(tmp_path: Path) -> None:
    made = coprobe.wrap(nn.Sequential(nn.Flatten(), nn.Linear(1024, 10)), image_shape=(1, 32, 32))
    torch.manual_seed(0)
    from coprobe.models import Classifier, build

    facts = {"width": 2, "num_classes": 10, "in_channels": 1}
    model = Classifier(build("resnet18", **facts)).eval()
    coprobe.Checkpoint(model, "resnet18", facts, {"eps_train": 4.0}, image_shape=(1, 32, 32)).save(tmp_path / "c.pt")
    images = coprobe.datasets.load("digits", limit=20)
    for path in (tmp_path / "c.pt", str(tmp_path / "c.pt")):
        probe = coprobe.Probe(path, "digits", limit=20, say=pytest.fail)
        assert probe.dataset.digest() == images.digest() and probe.caption == (
            "digits, n = 20, ε = 4/255, the training budget, seed 0"
        )
    assert coprobe.Probe(made, "digits", limit=20).caption == "digits, n = 20, ε = 8/255, assumed, seed 0"
    found = coprobe.Probe(made, images, 1 / 255).transfer([nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))], ())
    assert found.frame["target"].nunique() == 2


def test_public_names_need_no_further_import() -> None:
    assert set(coprobe.__all__) <= set(dir(coprobe))
    for name in coprobe.__all__:
        assert getattr(coprobe, name) is not None
    assert coprobe.datasets.load("digits", limit=3).num_classes == 10
    assert coprobe.metrics.Accuracy().attacks and coprobe.attacks.parse("fgsm", 0).spec == "fgsm"
    with pytest.raises(AttributeError, match="module 'coprobe' has no attribute 'probes'"):
        coprobe.probes


def test_images_of_any_size_that_the_network_takes() -> None:
    fixed = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 46 * 30, 3))
    images = torch.rand(4, 2, 48, 32, generator=torch.Generator().manual_seed(0))
    probe = coprobe.Probe(fixed, (images, [0, 1, 2, 1]), say=lambda text: None)
    assert (probe.checkpoint.image_shape, probe.dataset.num_classes) == ((2, 48, 32), 3)
    with pytest.raises(InputError, match="gives no logits for one image of 2×32×32"):
        coprobe.Probe(fixed, (images[:, :, :32], [0, 1, 2, 1]))
    with pytest.raises(InputError, match="row 3 has label 3; with 3 classes labels go from 0 to 2"):
        coprobe.Probe(fixed, (images, [0, 1, 2, 3]))


def said_by(*arguments: Any, **settings: Any) -> list[str]:
    said: list[str] = []
    coprobe.Probe(*arguments, say=said.append, **settings)
    return said


def test_what_is_assumed_is_said_in_one_sentence() -> None:
    both, pair = ((0.5,) * 3, (0.5,) * 3), (IMAGES, LABELS)
    assert said_by(Overfitted(), pair) == [
        "assumed that the network takes images in [0, 1] as they are (else say preprocess=(mean, std)) and was trained "
        "at 8/255, at which it is attacked (else say epsilon)"
    ]
    assert said_by(Overfitted(), pair, preprocess=both) == [
        "assumed that the network was trained at 8/255, at which it is attacked (else say epsilon)"
    ]
    assert said_by(Overfitted(), pair, 4 / 255) == [
        "assumed that the network takes images in [0, 1] as they are (else say preprocess=(mean, std))"
    ]
    assert said_by(Overfitted(), pair, 4 / 255, preprocess=lambda images: images) == []
    assert said_by(checkpoint(Overfitted()), pair) == []
    (note,) = said_by(checkpoint(Overfitted()), DataLoader(TensorDataset(IMAGES, LABELS), shuffle=True))
    assert note.startswith("DataLoader of TensorDataset: shuffles")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        probe = coprobe.Probe(Overfitted(), pair)
        replace(probe, seed=1)
    assert len(caught) == 1, "a probe that is made from another one has nothing more to say"


@pytest.mark.parametrize(
    ("recipe", "epsilon", "budget"),
    [
        ({"eps_train": 12.0}, None, "ε = 12/255, the training budget"),
        ({"eps_train": 12}, 12 / 255, "ε = 12/255, the training budget"),
        ({"eps_train": 12.0}, 8 / 255, "ε = 8/255, trained at 12/255"),
        ({}, None, "ε = 8/255, assumed"),
        ({}, 8 / 255, "ε = 8/255"),
        ({"eps_train": 12.0, "method": "clean"}, None, "ε = 8/255, assumed"),
        ({"eps_train": 12.0, "method": "noise"}, None, "ε = 12/255, the training budget"),
        ({"eps_train": 0.0}, None, "ε = 8/255, assumed"),
        ({"eps_train": "8"}, None, "ε = 8/255, assumed"),
        ({"eps_train": 1e9}, None, "ε = 8/255, assumed"),
        ({"eps_train": float("nan")}, None, "ε = 8/255, assumed"),
    ],
)
def test_one_rule_for_the_budget(recipe: dict[str, Any], epsilon: float | None, budget: str) -> None:
    probe = coprobe.Probe(checkpoint(Overfitted(), recipe=recipe), grey(2), epsilon)
    assert probe.caption == f"grey, n = 2, {budget}, seed 0"
    assert replace(probe, seed=1).caption == f"grey, n = 2, {budget}, seed 1"
    assert "assumed" not in replace(probe, epsilon=2 / 255).caption


def test_why_it_is_this_budget_makes_no_other_experiment(tmp_path: Path, attacks: list[str]) -> None:
    for epsilon in (None, 8 / 255):
        found = coprobe.Probe(checkpoint(Overfitted()), grey(2), epsilon, cache=tmp_path).evaluate(("fgsm",))
        assert found.frame.attrs["epsilon"] == 8
    assert attacks == ["fgsm"]


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (3, {}, "a int is no model; give a path, a Checkpoint or a torch.nn.Module"),
        ("nowhere.pt", {}, "nowhere.pt"),
        (Overfitted().state_dict(), {}, "a OrderedDict is no model"),
        (checkpoint(Overfitted()), {"preprocess": ((0.5,) * 3, (0.5,) * 3)}, r"say it with coprobe.load\(path, mean="),
        (checkpoint(Overfitted()), {"limit": 0}, "limit must be at least 1, not 0"),
    ],
)
def test_what_is_refused(model: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        coprobe.Probe(model, grey(2), **settings)


def test_the_self_check_sees_floats_as_they_are() -> None:
    images = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    subject = coprobe.Probe(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), (images, torch.arange(40) % 10)).subject()
    assert subject.images.mean() > 0.4  # divided by 255 once more, they were nearly black
