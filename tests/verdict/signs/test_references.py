"""Every sign that looks at images against a literal loop over them, image by image, on a small network."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from coprobe.attacks import parse
from coprobe.core.randomness import ImageRandomness
from coprobe.nodes import record
from coprobe.verdict.signs import SIGNS
from coprobe.verdict.signs.accuracy_over_epsilon import AccuracyOverEpsilon
from coprobe.verdict.signs.boundary_distortion import BoundaryDistortion, coarse_first
from coprobe.verdict.signs.confidence import Confidence
from coprobe.verdict.signs.loss_surface import LossSurface
from tests.verdict.signs.networks import (
    CLASSES,
    EPSILON,
    SEED,
    Convolving,
    column,
    dataset,
    images,
    measured,
    predicted,
)

COUNT, PROBING = 20, "pgd:10:rule=always"


#: Fewer budgets and points than by default, since a loop is slow.
BUDGETS, CELLS = (1, 8, 32), 2
SMALL = {
    "accuracy-over-eps": lambda: AccuracyOverEpsilon(tuple(budget / 255 for budget in BUDGETS)),
    "loss-surface": lambda: LossSurface(cells=CELLS),
}


@pytest.fixture(scope="module")
def model():
    return Convolving().eval()


@pytest.fixture(scope="module")
def data(model):
    """Images of which the model is right on most."""
    x = images(COUNT)
    labels = predicted(model, x)
    labels[::5] = (labels[::5] + 1) % CLASSES
    return dataset(x, labels)


class One:
    """One image, and what a plain reader of the formulas would compute of it."""

    def __init__(self, model, data, place: int) -> None:
        self.model, self.place = model, torch.tensor([place])
        self.x = data.images[place : place + 1].float() / 255
        self.y = data.labels[place : place + 1]

    def loss(self, z: Tensor) -> float:
        with torch.no_grad():
            return float(cross_entropy(self.model(z).double(), self.y))

    def logits(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model(z)[0].double()

    def right(self, z: Tensor) -> bool:
        return int(self.logits(z).argmax()) == int(self.y)

    def gradient(self, z: Tensor) -> Tensor:
        z = z.clone().requires_grad_()
        cross_entropy(self.model(z), self.y).backward()
        return z.grad.flatten().double()

    def uniform(self, purpose: str, *place: int) -> Tensor:
        return ImageRandomness(SEED, purpose, self.place).uniform(self.x.shape[1:], *place)

    def in_ball(self, purpose: str, *place: int) -> Tensor:
        return self.x + EPSILON * (2 * self.uniform(purpose, *place) - 1)

    def attacked(self, spec: str, epsilon: float = EPSILON) -> Tensor:
        return parse(spec, epsilon)(self.model, self.x, self.y, seed=SEED, indices=self.place)

    def fgsm(self) -> tuple[Tensor, Tensor]:
        """The random start, and the point a step further."""
        start = self.in_ball("attack", 0).clamp(0, 1)
        sign = self.gradient(start).sign().float().view_as(self.x)
        delta = (start + EPSILON * sign - self.x).clamp(-EPSILON, EPSILON)
        return start, (self.x + delta).clamp(0, 1)

    def straight(self) -> Tensor:
        return (self.x + EPSILON * self.gradient(self.x).sign().float().view_as(self.x)).clamp(0, 1)


def each(model, data) -> Iterator[One]:
    return (One(model, data, place) for place in range(COUNT))


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def gap(one: One) -> dict[str, float]:
    return {"gap": float(one.right(one.attacked("fgsm")) and not one.right(one.attacked("pgd:10")))}


def gradient_alignment(one: One) -> dict[str, float]:
    return {"cosine": cosine(one.gradient(one.x), one.gradient(one.in_ball("gradient-alignment")))}


def stage_alignment(one: One) -> dict[str, float]:
    start, stepped = one.fgsm()
    steps = [(end - one.x).flatten().double() for end in (one.straight(), one.attacked(PROBING))]
    return {"gradients": cosine(one.gradient(start), one.gradient(stepped)), "steps": cosine(*steps)}


def linearity(one: One) -> dict[str, float]:
    start, stepped = one.fgsm()
    before, after = one.gradient(start), one.gradient(stepped)
    return {"coefficient": float(before.sign() @ after / before.abs().sum())}


def linearity_error(one: One) -> dict[str, float]:
    errors = []
    for draw in range(4):
        first, second = (one.in_ball("linearity-error", draw, end) for end in range(2))
        a = float(ImageRandomness(SEED, "linearity-error", one.place).uniform((), draw, 2))
        middle = one.loss((1 - a) * first + a * second)
        errors.append((middle - (1 - a) * one.loss(first) - a * one.loss(second)) ** 2)
    return {"mean": sum(errors) / 4, "largest": max(errors)}


def abnormal_examples(one: One) -> dict[str, float]:
    start, stepped = one.fgsm()
    drop = one.loss(start) - one.loss(stepped)
    moved = float((one.logits(stepped) - one.logits(start)).square().sum())
    abnormal = drop > 0
    return {"share": float(abnormal), "drop": drop if abnormal else math.nan, "logits": moved if abnormal else math.nan}


def boundary_distortion(one: One) -> dict[str, float]:
    _, stepped = one.fgsm()
    if not (one.right(one.x) and one.right(stepped)):
        return {"share": math.nan}
    between = [one.right(one.x + place / 101 * (stepped - one.x)) for place in range(1, 101)]
    return {"share": float(not all(between))}


def gradient_size(one: One) -> dict[str, float]:
    g = one.gradient(one.x).numpy()
    small = sum(abs(element) < 0.1 * np.abs(g).mean() for element in g) / len(g)
    participation = (np.abs(g).sum() / np.sqrt((g**2).sum())) ** 2 / len(g)
    return {"length": math.sqrt((g**2).sum()), "small": small, "participation": participation, "zero": 0.0}


def class_triggers(one: One) -> dict[str, float]:
    rises, taken, of_classes = [], [], {}
    for c in range(CLASSES):
        grey = torch.full_like(one.x, 0.5).requires_grad_()
        one.model(grey).log_softmax(1)[0, c].backward()
        moved = one.logits((one.x + EPSILON * grey.grad.sign()).clamp(0, 1))
        if c == int(one.y):
            of_classes[f"class {c}"] = math.nan
            continue
        taken.append(float(moved.argmax() == c))
        rises.append(float(moved[c] > one.logits(one.x)[c]))
        of_classes[f"class {c}"] = taken[-1]
    return {"rises": np.mean(rises), "taken": np.mean(taken), **of_classes}


def channel_salience(one: One) -> dict[str, float]:
    found = {}
    for node in ("A", "B"):
        seen = []
        for z in (one.x, one.attacked(PROBING)):
            with torch.no_grad(), record(one.model, [node]) as recording:
                one.model(z)
            seen.append(recording[node][0].double().numpy())
        clean, moved = seen
        v = np.array([((clean[k] - moved[k]) ** 2).sum() for k in range(len(clean))])
        spread = np.array([channel.var() for channel in moved])
        few = max(1, round(0.1 * len(v)))
        differences = sum(abs(one - other) for one in v for other in v)
        found |= {
            f"v_act {node}": math.sqrt(v.sum()),
            f"t_act {node}": max(math.tanh(100 * one / clean.size) for one in v),
            f"top-tenth {node}": sorted(v)[-few:][0] / v.sum() if few == 1 else math.nan,
            f"gini {node}": differences / (2 * len(v) * v.sum()),
            f"variance {node}": sum(sorted(spread)[-few:]) / spread.sum(),
        }
    return found


def accuracy_over_epsilon(one: One) -> dict[str, float]:
    found, broken, returns = {}, False, False
    for budget in BUDGETS:
        fgsm = one.right(one.attacked("fgsm", budget / 255))
        pgd = one.right(one.attacked(f"pgd:10:step-size={budget / 4}", budget / 255))
        found |= {f"fgsm {budget}": float(fgsm), f"pgd {budget}": float(pgd)}
        returns, broken = returns or (broken and fgsm), broken or not fgsm
    return {**found, "returns": float(returns)}


def loss_surface(one: One) -> dict[str, float]:
    across = EPSILON * torch.where(one.uniform("loss-surface") < 0.5, -1.0, 1.0)
    along = one.straight() - one.x
    grid = [place / CELLS for place in range(-CELLS, CELLS + 1)]
    losses = {(a, b): one.loss(one.x + a * along + b * across) for a in grid for b in grid}
    ahead = [losses[a, 0] for a in grid if a >= 0]
    design = np.array([(1, a, b) for a, b in losses])
    values = np.array(list(losses.values()))
    left = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    surface = {f"loss {a:g},{b:g}": loss for (a, b), loss in losses.items()}
    return {"inside": float(0 < np.argmax(ahead) < CELLS), "bend": left.var() / values.var(), **surface}


REFERENCES = {
    "fgsm-pgd-gap": gap,
    "gradient-alignment": gradient_alignment,
    "stage-alignment": stage_alignment,
    "linearity": linearity,
    "linearity-error": linearity_error,
    "abnormal-examples": abnormal_examples,
    "boundary-distortion": boundary_distortion,
    "gradient-size": gradient_size,
    "class-triggers": class_triggers,
    "channel-salience": channel_salience,
    "accuracy-over-eps": accuracy_over_epsilon,
    "loss-surface": loss_surface,
}


@pytest.mark.parametrize("name", REFERENCES)
def test_a_sign_is_what_a_literal_loop_finds(name, model, data):
    sign = SMALL.get(name, SIGNS[name])()
    frame = measured(model, data, sign, places=("A", "B") if sign.at_nodes else ())
    expected = [REFERENCES[name](one) for one in each(model, data)]
    for key in expected[0]:
        quantity, _, at = key.partition(" ")
        found = column(frame, quantity, at)
        wanted = [row[key] for row in expected]
        assert found == pytest.approx(wanted, rel=2e-3, abs=1e-6, nan_ok=True), key
    keys = {(quantity, at) for quantity, at in zip(frame["quantity"], frame["at"], strict=True)}
    named = {tuple(key.partition(" ")[::2]) for key in expected[0]}
    assert {key for key in keys if key[0] != "channel"} == named


def test_the_channel_that_moves_most_is_named_and_counted(model, data):
    frame = measured(model, data, SIGNS["channel-salience"](), places=("A",))
    largest = []
    for one in each(model, data):
        seen = []
        for z in (one.x, one.attacked(PROBING)):
            with torch.no_grad(), record(model, ["A"]) as recording:
                model(z)
            seen.append(recording["A"][0])
        largest.append(int((seen[0] - seen[1]).square().sum((1, 2)).argmax()))
    often = max(sorted(set(largest)), key=largest.count)
    assert column(frame, "channel", f"A:{often}") == [float(one == often) for one in largest]


def test_groups_by_confidence_are_fifths_of_the_images(model, data):
    frame = measured(model, data, Confidence())
    ones = list(each(model, data))
    order = sorted(range(COUNT), key=lambda place: -ones[place].loss(ones[place].x))
    for group in range(5):
        members = {place for rank, place in enumerate(order) if rank * 5 // COUNT == group}
        found = column(frame, "clean", str(group + 1))
        assert {place for place in range(COUNT) if not math.isnan(found[place])} == members
        for quantity, spec in (("fgsm", "fgsm"), ("pgd", "pgd:10")):
            found = column(frame, quantity, str(group + 1))
            assert all(found[place] == ones[place].right(ones[place].attacked(spec)) for place in members)
        probabilities = column(frame, "probability", str(group + 1))
        for place in members:
            assert probabilities[place] == pytest.approx(math.exp(-ones[place].loss(ones[place].x)), rel=1e-4)


def test_the_network_of_these_tests_shows_something_of_everything(model, data):
    """So that equality with the loops says something."""
    signs = [SIGNS[name]() for name in ("abnormal-examples", "boundary-distortion", "fgsm-pgd-gap", "class-triggers")]
    frame = measured(model, data, *signs, AccuracyOverEpsilon(), LossSurface())
    means = frame[frame["quantity"] != "loss"].groupby(["sign", "quantity"])["value"].mean()
    means = means.drop([("abnormal-examples", "drop"), ("abnormal-examples", "logits")])
    means = means.drop([("accuracy-over-eps", "pgd"), ("fgsm-pgd-gap", "gap"), ("boundary-distortion", "share")])
    assert means.between(0, 1, inclusive="neither").all(), means.to_dict()


def test_a_segment_is_looked_at_everywhere_the_coarse_points_first():
    order = coarse_first(100)
    assert sorted(order) == list(range(1, 101)) and order[0] == 64
    assert order[:6] == [64, 32, 96, 16, 80, 48]
    assert BoundaryDistortion().points == 100
