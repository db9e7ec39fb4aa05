"""Signs of models of which they are known by hand, or by an integral."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coprobe.attacks import parse
from coprobe.nodes import masked
from coprobe.verdict.signs.abnormal_examples import AbnormalExamples
from coprobe.verdict.signs.boundary_distortion import BoundaryDistortion
from coprobe.verdict.signs.channel_salience import ChannelSalience, gini
from coprobe.verdict.signs.class_triggers import ClassTriggers
from coprobe.verdict.signs.gradient_alignment import GradientAlignmentSign
from coprobe.verdict.signs.gradient_size import GradientSize
from coprobe.verdict.signs.linearity import Linearity
from coprobe.verdict.signs.linearity_error import LinearityError
from coprobe.verdict.signs.loss_surface import LossSurface
from coprobe.verdict.signs.stage_alignment import StageAlignment
from tests.toys import same_channels
from tests.verdict.signs.networks import EPSILON, SIDE, column, dataset, images, measured, predicted

PIXELS = 3 * SIDE * SIDE


class Linear(nn.Module):
    """Logits 0 and ⟨w, x⟩ − b, where b makes half of the images of each class."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.w = scale * torch.randn(PIXELS, generator=torch.Generator().manual_seed(2)).double()
        self.b = float(0.5 * self.w.sum())

    def forward(self, x: Tensor) -> Tensor:
        margin = x.flatten(1).double() @ self.w - self.b
        return torch.stack([torch.zeros_like(margin), margin], 1)


@pytest.fixture(scope="module")
def linear():
    """A linear network of two classes, images, and what the signs of the loss say of it."""
    model = Linear(0.5)
    x = images(24)
    frame = measured(
        model,
        dataset(x, predicted(model, x), 2),
        GradientAlignmentSign(),
        StageAlignment(),
        Linearity(),
        AbnormalExamples(),
        BoundaryDistortion(),
        LossSurface(),
    )
    return model, x, frame


def test_a_linear_network_of_two_classes_has_one_direction(linear):
    _, _, frame = linear
    for quantity in ("cosine", "gradients", "steps"):
        assert column(frame, quantity) == pytest.approx([1] * 24, abs=1e-6)


def test_its_linearity_is_how_much_steeper_the_softplus_is_after_the_step(linear):
    """⟨sign g, g'⟩ / ‖g‖₁ = ‖g'‖₁ / ‖g‖₁, and both gradients are w times the probability of the wrong class."""
    model, x, frame = linear
    coefficients = column(frame, "coefficient")
    for place in (0, 7, 23):
        one = x[place : place + 1]
        label = predicted(model, one)
        # the start of FGSM and what its step leads to, as the attack hands them out
        steps = parse("fgsm:rule=always", EPSILON).steps(model, one, label, seed=3, indices=torch.tensor([place]))
        wrong = [1 - float(model(point).softmax(1)[0, label[0]]) for point in steps]
        assert coefficients[place] == pytest.approx(wrong[1] / wrong[0], rel=1e-5)
    assert min(coefficients) > 1  # the loss is convex, and FGSM climbs


def test_where_the_softplus_is_straight_its_linearity_is_one():
    model = Linear(50)
    x = images(24)
    wrong = 1 - predicted(model, x)
    margins = model(x)[:, 1].abs()
    far = [place for place in range(24) if margins[place] > 75]  # FGSM starts within some 30 of the image
    frame = measured(model, dataset(x, wrong, 2), Linearity())
    coefficients = column(frame, "coefficient")
    assert len(far) >= 3
    assert [coefficients[place] for place in far] == pytest.approx([1] * len(far), abs=1e-9)


def test_nothing_of_it_is_abnormal_or_distorted(linear):
    _, _, frame = linear
    assert column(frame, "share", sign="abnormal-examples") == [0] * 24
    distorted = column(frame, "share", sign="boundary-distortion")
    assert set(distorted) - {0} <= {value for value in distorted if math.isnan(value)} and 0 in distorted
    assert all(math.isnan(value) for value in column(frame, "drop"))
    assert column(frame, "inside") == [0] * 24  # the loss is highest at the end
    assert max(column(frame, "bend")) < 0.2


def test_its_linearity_error_is_that_of_the_softplus():
    """E over u₁, u₂ (sums of many uniform numbers) and a of the squared distance from the chord, by an integral."""
    model, epsilon, count = Linear(2.0), 0.05, 3000
    one = images(1)
    label = predicted(model, one)
    margin = (1 - 2 * int(label)) * float(model(one)[0, 1])
    same = dataset(one.expand(count, -1, -1, -1), label.expand(count), 2)
    frame = measured(model, same, LinearityError(draws=2), epsilon=epsilon, batch_size=count)
    spread = epsilon * float(model.w.norm()) / math.sqrt(3)  # ⟨w, η⟩ is normal, nearly: 108 uniform numbers
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    fractions, parts = np.polynomial.legendre.leggauss(20)
    first, second, a = np.meshgrid(nodes, nodes, (fractions + 1) / 2, indexing="ij")
    density = np.einsum("i,j,k->ijk", weights, weights, parts / 2) / weights.sum() ** 2
    ends = [np.logaddexp(0, margin + spread * end) for end in (first, second)]
    between = np.logaddexp(0, margin + spread * ((1 - a) * first + a * second))
    expected = float((density * (between - (1 - a) * ends[0] - a * ends[1]) ** 2).sum())
    assert np.mean(column(frame, "mean")) == pytest.approx(expected, rel=0.12)
    assert np.mean(column(frame, "largest")) > 1.3 * expected


class Wave(nn.Module):
    """Logits 0 and sin(k ⟨w, x⟩)."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = k
        self.w = torch.randn(PIXELS, generator=torch.Generator().manual_seed(4)).double()
        self.w /= self.w.norm()

    def forward(self, x: Tensor) -> Tensor:
        wave = torch.sin(self.k * (x.flatten(1).double() @ self.w))
        return torch.stack([torch.zeros_like(wave), wave], 1)


@pytest.mark.parametrize("k", [0.5, 20.0, 500.0])
def test_the_alignment_of_a_wave_is_known_by_quadrature(k):
    """Both gradients are multiples of w, so that their cosine is ±1: E sign(cos(k u) · cos(k (u + v)))."""
    count, model = 400, Wave(k)
    x = images(count)
    frame = measured(model, dataset(x, torch.zeros(count, dtype=torch.int64), 2), GradientAlignmentSign())
    cosines = np.array(column(frame, "cosine"))
    assert np.abs(cosines) == pytest.approx(np.ones(count), abs=1e-6)
    u = (x.flatten(1).double() @ model.w).numpy()
    spread = EPSILON / math.sqrt(3)
    v = spread * np.linspace(-6, 6, 20001)
    density = np.exp(-0.5 * (v / spread) ** 2)
    signs = np.sign(np.cos(k * u)[:, None] * np.cos(k * (u[:, None] + v)))
    expected = float((signs * density).sum() / density.sum() / count)
    assert cosines.mean() == pytest.approx(expected, abs=3.5 / math.sqrt(count))
    assert expected > 0.9 if k < 1 else abs(expected) < 0.1 if k > 100 else True


def test_a_step_lowers_the_loss_of_a_fast_wave_as_often_as_not():
    model = Wave(500.0)
    x = images(200)
    frame = measured(model, dataset(x, predicted(model, x), 2), AbnormalExamples(), LossSurface(cells=3))
    share = np.array(column(frame, "share"))
    assert 0.3 < share.mean() < 0.7
    drops = np.array(column(frame, "drop"))
    assert (np.isnan(drops) == (share == 0)).all() and np.nanmin(drops) > 0
    assert np.mean(column(frame, "bend")) > 0.5 and np.mean(column(frame, "inside")) > 0.1


class Planted(nn.Module):
    """Channels that follow ⟨u, x⟩ a little, and channel 7: c · relu(⟨u, x⟩ − b), which sleeps on the data."""

    def __init__(self, b: float, c: float = 400.0) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.relu = nn.ReLU()
        self.same = same_channels(10)
        self.u = torch.randn(PIXELS).sign() / PIXELS
        self.b, self.c = b, c
        self.node_table = {"A": "relu"}

    def forward(self, x: Tensor) -> Tensor:
        along = x.flatten(1) @ self.u
        channels = (1 + along[:, None] * torch.arange(10)) * torch.ones(10)
        channels[:, 7] = self.c * (along - self.b)
        seen = self.relu(self.same(channels[:, :, None, None]))[:, :, 0, 0]
        return torch.stack([1.2 * seen[:, 0], seen[:, 1] + seen[:, 7]], 1)


def test_a_planted_channel_is_named():
    x = images(20, low=0.4, high=0.6)
    model = Planted(float((x.flatten(1) @ Planted(0).u).max()) + 1e-4)
    labels = torch.zeros(20, dtype=torch.int64)
    frame = measured(model, dataset(x, labels, 2), ChannelSalience(), epsilon=16 / 255, places=("A",))
    (at,) = set(frame[frame["quantity"] == "channel"]["at"])
    assert at == "A:7" and np.nanmean(column(frame, "channel", at)) > 0.9
    assert np.nanmean(column(frame, "top-tenth", "A")) > 0.9 and np.nanmean(column(frame, "gini", "A")) > 0.8
    with torch.no_grad(), masked(model, {"A": [7]}):
        hidden = model(x)
    assert torch.equal(hidden, model(x))


def test_the_gini_index_is_that_of_equal_and_of_single_shares():
    assert gini(torch.tensor([[2.0, 2, 2, 2], [0, 0, 5, 0], [1, 2, 3, 4], [0, 0, 0, 0]])).tolist() == pytest.approx(
        [0, 0.75, 0.25, math.nan], nan_ok=True
    )


def test_a_class_with_much_larger_weights_triggers_all_others():
    torch.manual_seed(6)
    model = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 4))
    model[1].weight.data[2] *= 20
    model[1].bias.data[2] = -float(model[1].weight.data[2].sum()) / 2
    x = images(40)
    labels = torch.arange(40) % 4
    frame = measured(model, dataset(x, labels), ClassTriggers(), epsilon=32 / 255)
    taken = {c: np.array(column(frame, "class", str(c))) for c in range(4)}
    assert np.nanmean(taken[2]) == 1 and np.mean([np.nanmean(taken[c]) for c in (0, 1, 3)]) < 0.5
    assert all(np.isnan(taken[c][labels == c]).all() and not np.isnan(taken[c][labels != c]).any() for c in range(4))


class Quantised(nn.Module):
    """Sees the images in 16 steps, so that no gradient reaches them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.layer = nn.Linear(PIXELS, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer((torch.floor(16 * x) / 16).flatten(1))


def test_gradients_that_are_zero_by_construction_are_counted_as_such():
    x = images(20)
    signs = (GradientSize(), GradientAlignmentSign(), StageAlignment(), Linearity(), AbnormalExamples())
    frame = measured(Quantised(), dataset(x, torch.zeros(20, dtype=torch.int64)), *signs)
    assert column(frame, "zero") == [1] * 20 and column(frame, "length") == [0] * 20
    assert column(frame, "share") == [0] * 20  # FGSM stays where it is
    for quantity in ("small", "participation", "cosine", "gradients", "steps", "coefficient"):
        assert all(math.isnan(value) for value in column(frame, quantity)), quantity


def test_a_gradient_that_is_the_same_everywhere_is_spread_over_all_pixels():
    model = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 2))
    model[1].weight.data[:] = torch.tensor([[0.01], [-0.01]])
    frame = measured(model, dataset(images(5), torch.zeros(5, dtype=torch.int64), 2), GradientSize())
    assert column(frame, "participation") == pytest.approx([1] * 5, abs=1e-6)
    assert column(frame, "small") == [0] * 5 and column(frame, "zero") == [0] * 5
