"""Signs measured together: the same for any batch size, shared among processes, summed up with their intervals."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import coprobe
from coprobe.attacks import AdversarialExamples, Ball, parse
from coprobe.checkpoint import Checkpoint
from coprobe.core.processes import Processes
from coprobe.errors import InputError, RunError
from coprobe.metrics import Accuracy, measure
from coprobe.metrics.accuracy import wilson
from coprobe.metrics.gradient_alignment import GradientAlignment
from coprobe.models import Classifier
from coprobe.verdict.signs import SIGNS, ImageSign, ImageSigns, listed
from coprobe.verdict.signs.accuracy_over_epsilon import AccuracyOverEpsilon
from coprobe.verdict.signs.boundary_distortion import BoundaryDistortion
from coprobe.verdict.signs.layer_sensitivity import LayerNoise
from coprobe.verdict.signs.loss_surface import LossSurface
from coprobe.verdict.signs.neighbourhood import Neighbourhood
from coprobe.verdict.signs.table import interval_of
from tests.metrics.threads import in_threads
from tests.verdict.signs.networks import CLASSES, EPSILON, SEED, Convolving, dataset, images, measured, predicted

COUNT = 34
#: Every sign that looks at images, some with fewer points and budgets than by default.
SMALL = {
    "accuracy-over-eps": AccuracyOverEpsilon((2 / 255, 16 / 255)),
    "boundary-distortion": BoundaryDistortion(points=10),
    "loss-surface": LossSurface(cells=2),
}
ALL = tuple(SMALL.get(entry.name) or entry.value() for entry in listed() if issubclass(entry.value, ImageSign))


@pytest.fixture(scope="module")
def model():
    return Convolving().eval()


@pytest.fixture(scope="module")
def data(model):
    x = images(COUNT)
    labels = predicted(model, x)
    labels[::5] = (labels[::5] + 1) % CLASSES
    return dataset(x, labels)


@pytest.fixture(scope="module")
def together(model, data):
    """All signs that look at images, in batches of 16."""
    return measured(model, data, *ALL, batch_size=16, places=("A", "B"))


def checkpoint(network: nn.Module) -> Checkpoint:
    about = {"num_classes": CLASSES, "in_channels": 3}
    return Checkpoint(Classifier(network).eval(), "toy", about)


def probe(model, data, **settings) -> coprobe.Probe:
    return coprobe.Probe(checkpoint(model), data, EPSILON, seed=SEED, plain=True, **settings)


@pytest.mark.parametrize("batch_size", [17, 34])
def test_signs_are_the_same_bit_for_bit_in_batches_of_any_size(batch_size, model, data, together):
    other = measured(model, data, *ALL, batch_size=batch_size, places=("A", "B"))
    pd.testing.assert_frame_equal(other, together, check_exact=True)


def test_signs_are_the_same_together_and_alone(model, data, together):
    for sign in ALL:
        alone = measured(model, data, sign, batch_size=16, places=("A", "B"))
        mine = together[together["sign"] == sign.name].reset_index(drop=True)
        pd.testing.assert_frame_equal(alone, mine, check_exact=True)


def test_several_processes_find_what_one_finds(data, together):
    models = [Convolving().eval() for _ in range(2)]

    def work(processes: Processes) -> pd.DataFrame:
        metric = ImageSigns(signs=ALL, places=("A", "B")).at(Ball(EPSILON), SEED)
        attacks = [parse(spec, EPSILON) for spec in metric.attacks]
        network = models[processes.rank]
        examples = AdversarialExamples(network, data, attacks, batch_size=16, seed=SEED, processes=processes)
        return measure(examples, [metric], [network], processes)[0]

    for found in in_threads(2, work):
        pd.testing.assert_frame_equal(found, together, check_exact=True)


def test_what_several_signs_ask_for_is_computed_once(model, data, monkeypatch):
    gradients = []
    at = Neighbourhood._point
    monkeypatch.setattr(Neighbourhood, "_point", lambda self, x: gradients.append(len(x)) or at(self, x))
    names = ("gradient-alignment", "stage-alignment", "linearity", "abnormal-examples", "gradient-size")
    measured(model, data, *(SIGNS[name]() for name in names), batch_size=COUNT)
    assert gradients == [COUNT] * 4  # at x, near it, and at both ends of the step of FGSM


def test_the_metric_and_the_sign_of_alignment_are_one(model, data, together):
    examples = AdversarialExamples(model, data, [], batch_size=16, seed=SEED)
    metric = GradientAlignment(epsilon=EPSILON, seed=SEED).measure(model, examples).iloc[0]
    cosines = together[together["sign"] == "gradient-alignment"]["value"]
    assert metric["alignment"] == pytest.approx(cosines.mean(), rel=1e-12)


def test_the_table_has_means_with_their_intervals(model, data):
    table = probe(model, data).signs(["accuracy-over-eps", "gradient-alignment", "gradient-size"])
    assert list(table.frame["number"].unique()) == [2, 8, 11]  # in the order of the table of signs
    for row in table.frame.to_dict("records"):
        own = table.images[(table.images["sign"] == row["sign"]) & (table.images["quantity"] == row["quantity"])]
        values = own[own["at"] == row["at"]]["value"].dropna()
        assert (row["n"], row["value"]) == (len(values), pytest.approx(values.mean(), rel=1e-12))
        assert row["low"] <= row["value"] <= row["high"]
        if row["interval"] == "wilson":
            assert (row["low"], row["high"]) == pytest.approx(wilson(values.sum(), len(values)))
        if row["interval"] == "normal":
            assert row["high"] - row["value"] == pytest.approx(
                1.95996 * values.std() / math.sqrt(len(values)), rel=1e-4
            )
    assert table.value("gradient-alignment") == table.value("gradient-alignment", "cosine")
    assert table.frame.attrs["epsilon"] == 8 and table.images.attrs["seed"] == SEED
    with pytest.raises(InputError, match="pgd at 3 of sign 'accuracy-over-eps' was not measured"):
        table.value("accuracy-over-eps", "pgd", "3")


def test_accuracies_of_signs_are_those_of_the_evaluation(model, data):
    asked = probe(model, data)
    table = asked.signs(["accuracy-over-eps", "fgsm-pgd-gap", "confidence"], budgets=[EPSILON, 2 / 255])
    evaluation = asked.evaluate(("fgsm", "pgd:10"))
    assert list(table.frame[table.frame["quantity"] == "fgsm"]["at"][:2]) == ["2", "8"]
    for quantity in ("fgsm", "pgd"):  # at 8/255 a quarter of the budget is a step of 2/255
        spec = {"fgsm": "fgsm", "pgd": "pgd:10"}[quantity]
        assert table.value("accuracy-over-eps", quantity, "8") == evaluation.accuracy(spec)
        groups = table.frame[(table.frame["sign"] == "confidence") & (table.frame["quantity"] == quantity)]
        assert list(groups["at"]) == ["1", "2", "3", "4", "5"] and groups["n"].sum() == COUNT
        assert (groups["value"] * groups["n"]).sum() / COUNT == pytest.approx(evaluation.accuracy(spec))


def test_salience_is_that_of_the_channel_statistics(model, data):
    asked = probe(model, data)
    table, statistics = asked.signs(["channel-salience"]), asked.activations(["A", "B"])
    for node in ("A", "B"):
        assert table.value("channel-salience", "v_act", node) == pytest.approx(statistics.v_act(node), rel=1e-9)


def test_signs_use_what_was_crafted_for_the_verdict(model, data, attacks):
    asked = probe(model, data)
    with asked.keeping():
        asked.diagnose()
        made = list(attacks)
        asked.signs(["fgsm-pgd-gap", "channel-salience", "confidence"])
    assert attacks == made == ["fgsm", "pgd:10", "pgd:10:rule=always"]


def test_signs_are_kept_and_measured_anew_where_a_setting_or_version_changes(model, data, tmp_path, monkeypatch):
    asked = probe(model, data, cache=tmp_path)
    first = asked.signs(["gradient-size"])
    monkeypatch.setattr(ImageSigns, "update", None)
    second = probe(model, data, cache=tmp_path).signs(["gradient-size"])
    pd.testing.assert_frame_equal(first.frame, second.frame, check_exact=True)
    pd.testing.assert_frame_equal(first.images, second.images, check_exact=True)
    monkeypatch.setattr(SIGNS["gradient-size"], "version", 2)
    with pytest.raises(TypeError):
        probe(model, data, cache=tmp_path).signs(["gradient-size"])


def test_intervals_of_means():
    values = np.random.default_rng(0).lognormal(0, 1.5, 400)
    low, high = interval_of(values, "bootstrap", 1)
    assert (low, high) == interval_of(values, "bootstrap", 1) != interval_of(values, "bootstrap", 2)
    spread = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * spread, abs=spread) and low < values.mean() < high
    assert interval_of(np.ones(4), "normal") == interval_of(np.ones(4), "bootstrap") == (1, 1)
    assert interval_of(np.array([0.0, 1, 1, 0]), "wilson") == wilson(2, 4)
    for nothing in (interval_of(np.array([]), "wilson"), interval_of(np.array([3.0]), "normal")):
        assert all(map(math.isnan, nothing))


def test_noise_on_a_layer_is_of_the_length_that_is_said(model, data):
    setup = probe(model, data)
    changed = dict(LayerNoise(rho=0.2).weights(setup, None))
    assert list(changed) == ["first", "second", "head"]
    for path, weight in changed.items():
        before = getattr(model, path).weight.detach()
        assert float((weight - before).norm()) == pytest.approx(0.2 * float(before.norm()), rel=1e-5)
    again = dict(LayerNoise(rho=0.2).weights(setup, None))
    assert all(torch.equal(weight, again[path]) for path, weight in changed.items())


def test_layer_sensitivity_is_the_accuracy_of_changed_copies(model, data):
    asked = probe(model, data)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    table = asked.signs(["layer-noise"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    changed = Convolving().eval()
    changed.second.weight.data = dict(LayerNoise().weights(asked, None))["second"]
    expected = probe(changed, data).measure(Accuracy(attacks=("pgd:10",)))[0]
    for quantity, spec in (("clean", "clean"), ("pgd", "pgd:10")):
        assert table.value("layer-noise", quantity, "second") == expected.accuracy(spec)
        assert table.value("layer-noise", quantity, "none") == asked.evaluate(("pgd:10",)).accuracy(spec)


class Guarded(nn.Module):
    """Right while `sensitive` × the brightness is below 3: at once where its weight is 1, until attacked at 5.9."""

    def __init__(self, weak: float) -> None:
        super().__init__()
        self.through = nn.Conv2d(3, 1, 1, bias=False)
        self.through.weight.data.fill_(1 / 3)
        self.sensitive = nn.Conv2d(1, 1, 1, bias=False)
        self.sensitive.weight.data.fill_(weak)
        self.relu = nn.ReLU()
        self.head = nn.Conv2d(1, CLASSES, 1)
        self.head.weight.data = torch.tensor([0.0, 1.0, 0.0, 0.0])[:, None, None, None]
        self.head.bias.data = torch.tensor([3.0, 0.0, 0.0, 0.0])
        self.node_table = {"A": "relu"}

    def forward(self, x):
        return self.head(self.relu(self.sensitive(self.through(x)))).mean((2, 3))


def test_a_layer_out_of_a_healthy_checkpoint_restores_robustness_where_the_fault_is():
    x = images(20, low=0.45, high=0.55)
    data = dataset(x, torch.zeros(20, dtype=torch.int64))
    table = probe(Guarded(5.9), data).signs(["layer-transplant"], reference=checkpoint(Guarded(1.0)))
    robust = {at: table.value("layer-transplant", "pgd", at) for at in ("none", "through", "sensitive", "head")}
    assert robust == {"none": robust["none"], "through": robust["none"], "sensitive": 1, "head": robust["none"]}
    assert robust["none"] == 0
    with pytest.raises(InputError, match="has other layers than the first"):
        probe(Guarded(5.9), data).signs(["layer-transplant"], reference=checkpoint(Convolving()))


def test_outliers_and_singular_values_are_those_of_the_matrices(model, data):
    model = Convolving().eval()
    model.second.weight.data[0, 0, 0, 0] = 40
    frame = probe(model, data).signs(["weight-outliers"]).frame
    for path in ("first", "second", "head"):
        matrix = getattr(model, path).weight.detach().double().flatten(1).numpy()
        rows = frame[frame["at"] == path].set_index("quantity")
        magnitudes = np.sort(np.abs(matrix).ravel())
        median = magnitudes[(len(magnitudes) - 1) // 2]  # as torch counts: the lower of the two in the middle
        assert rows["value"]["largest"] == pytest.approx(magnitudes[-1] / median)
        assert rows["value"]["singular"] == pytest.approx(np.linalg.svd(matrix, compute_uv=False)[0])
        assert rows["n"]["largest"] == matrix.size and math.isnan(rows["low"]["largest"])
    assert frame[frame["quantity"] == "largest"].nlargest(1, "value")["at"].item() == "second"


def test_all_signs_are_those_that_can_be_measured(model, data):
    table = probe(model, data).signs()
    assert list(table.frame["sign"].unique()) == [entry.name for entry in listed() if entry.name != "layer-transplant"]
    assert table.frame["number"].is_monotonic_increasing and table.frame["n"].min() >= 0
    measured_ones = table.frame[table.frame["interval"] != "none"].dropna(subset=["value"])
    assert (measured_ones["low"] <= measured_ones["value"] + 1e-12).all()


def test_signs_in_an_l2_ball(model, data):
    table = coprobe.Probe(checkpoint(model), data, 0.5, norm="l2", seed=SEED, plain=True).signs(
        ["linearity", "stage-alignment", "accuracy-over-eps", "loss-surface", "class-triggers", "linearity-error"]
    )
    assert list(table.frame[table.frame["quantity"] == "pgd"]["at"]) == ["0.125", "0.25", "0.5", "1", "2", "4"]
    assert -1 <= table.value("stage-alignment", "steps") <= 1


@pytest.mark.parametrize(
    ("names", "how", "message"),
    [
        (["gradient-alinment"], {}, "unknown sign 'gradient-alinment'; did you mean gradient-alignment"),
        (["layer-transplant"], {}, "sign 'layer-transplant' compares with a second checkpoint; pass --reference"),
        (["accuracy-over-eps"], {"budgets": [0.1, 0]}, "a budget of 0 leaves every image as it is"),
        (["accuracy-over-eps"], {"budgets": [2.0]}, "epsilon 510/255: must lie between 0 and 255"),
        (["channel-salience"], {"attack": "pdg"}, "unknown attack 'pdg'; did you mean pgd"),
    ],
)
def test_what_cannot_be_measured(names, how, message, model, data):
    with pytest.raises(InputError, match=message):
        probe(model, data).signs(names, **how)


def test_broken_gradients_are_no_signs(data):
    broken = Convolving().eval()
    broken.head.weight.data[0, 0] = torch.nan
    with pytest.raises(RunError, match="logits or gradients are not finite"):
        measured(broken, data, SIGNS["gradient-size"]())
    with pytest.raises(InputError, match="no images to look for signs on"):
        ImageSigns(signs=(SIGNS["gradient-size"](),)).measure(Convolving(), [])
