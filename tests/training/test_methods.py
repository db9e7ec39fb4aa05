"""What holds for every training method: above all, one step equals a slow, literal reference (float64)."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor

from coprobe.core.registry import Entry
from coprobe.data import Batch
from coprobe.errors import InputError
from coprobe.training import METHODS, Method, make_method
from coprobe.training.memory import Memory
from coprobe.training.regularizers import FeatureStability, LogitStability, Regularizer
from tests.training.references import REFERENCES
from tests.training.references.common import EPSILON, At, Tiny, begin, make, make_batch, state, tiny
from tests.training.updates import assert_same_state, literal_update, loop_for, one_update

ATTACKING = [name for name in METHODS if METHODS[name].attacks]
#: Updates between which methods that change with the epoch or from update to update differ.
PLACES = (At(0, 0), At(5, 1), At(9, 0))


@pytest.fixture
def model() -> Tiny:
    return tiny()


@pytest.fixture
def batch() -> Batch:
    return make_batch()


def test_every_method_has_a_reference() -> None:
    assert set(REFERENCES) == set(METHODS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "regularized"), [(name, False) for name in METHODS] + [(name, True) for name in ATTACKING]
)
@pytest.mark.parametrize("at", PLACES, ids=lambda at: f"{at.epoch}-{at.number}")
def test_one_update_equals_the_reference(name: str, regularized: bool, at: At, model: Tiny, batch: Batch) -> None:
    slow = copy.deepcopy(model)
    method = make(name, epoch=at.epoch)
    literal = REFERENCES[name](slow, batch, method, at)
    loss = literal.loss
    if regularized:
        assert literal.start_features is not None
        assert literal.start_logits is not None
        loss = loss + 20.0 * ((literal.features - literal.start_features) ** 2).mean()
        loss = loss + 10.0 * ((literal.logits - literal.start_logits) ** 2).mean()
    literal_update(slow, loss)

    terms: list[Regularizer] = [FeatureStability("relu", 20.0), LogitStability(10.0)] if regularized else []
    one_update(loop_for(model, method, terms), batch, at)
    assert_same_state(model, slow)


@pytest.mark.parametrize("name", METHODS)
def test_perturbation_stays_in_the_ball_and_the_range(name: str, model: Tiny, batch: Batch) -> None:
    method = make(name)
    inputs = method.perturb(state(method, model, batch))
    images = inputs.images.detach()
    if method.bounded:
        assert (images - batch.images).abs().max() <= EPSILON + 1e-12
    if method.clamped:
        assert images.min() >= 0
        assert images.max() <= 1
    assert (inputs.start is not None) == method.attacks
    assert model.training
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", METHODS)
def test_what_is_kept_is_all_that_outlasts_an_update(name: str, batch: Batch) -> None:
    """A method that gets another's state does what the other does next, also in the middle of an epoch."""
    first, second = tiny(), tiny()
    method = make(name)
    loop = loop_for(first, method)
    one_update(loop, batch)
    other = loop_for(second, make(name))
    other.method.kept.clear()
    other.load(copy.deepcopy(loop.state()))
    for each in (loop, other):
        begin(each.method, 1)
        one_update(each, make_batch(5), At(1, 0))
    assert_same_state(first, second)
    assert set(method.kept) == set(other.method.kept)


@pytest.mark.parametrize("name", METHODS)
def test_memories_can_be_held_in_half_precision(name: str, batch: Batch) -> None:
    """An update with float16 memories differs from one in float64 by rounding only: nothing over- or underflows."""
    results = []
    for dtype in (torch.float64, torch.float16):
        method = make(name)
        values = {key: value for key, value in method.kept.items() if isinstance(value, Memory)}
        for key, value in values.items():
            method.kept[key] = Memory(value.gather(), dtype)
        model = tiny()
        one_update(loop_for(model, method), batch)
        results.append({key: method.memory(key).gather().double() for key in values})
    for key, exact in results[0].items():
        assert results[1][key].isfinite().all()
        agreeing = ((results[1][key] - exact).abs() <= 2e-3 * exact.abs() + 1e-6).double().mean()
        assert agreeing > 0.98, key  # a gradient of nearly 0 may change its sign


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fgsm", "atas"])
def test_compiled_updates_are_the_plain_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with activations recorded, in a second epoch, whose hooks are new."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # needs no C++ compiler
    models = [tiny(), tiny()]
    for compiled, model in enumerate(models):
        loop = loop_for(model, make(name), [FeatureStability("relu", 20.0)], compiled=bool(compiled))
        for epoch in range(2):
            one_update(loop, make_batch(epoch), At(epoch, 0))
    assert_same_state(*models)


def test_step_size_replaces_the_default() -> None:
    assert make("fgsm-rs").alpha == pytest.approx(1.25 * EPSILON)
    assert make("fgsm-rs", step_size=0.01).alpha == 0.01


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fgsm-mepp", {}, "unknown training method 'fgsm-mepp'; did you mean fgsm-mep"),
        ("fgsm", {"momentum": 1}, "method fgsm has no option 'momentum'; its options: none"),
        ("fgsm-mep", {"label-factor": "x"}, "method fgsm-mep: option label_factor takes a number, not 'x'"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as raised:
        make_method(name, options, epsilon=EPSILON)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("entry", METHODS.entries(), ids=lambda entry: entry.name)
def test_every_method_says_what_it_is_and_costs(entry: Entry[type[Method]]) -> None:
    assert entry.summary
    assert entry.source
    assert entry.value.__doc__
    assert entry.facts["cost"] > 0
    assert all(not isinstance(value, Tensor) for value in entry.facts.values())
