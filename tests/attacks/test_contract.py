"""What holds for every registered attack; a new one is tested here without a change."""

from __future__ import annotations

import random
import sys
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from coprobe.attacks import ATTACKS, Attack, StepAttack, parse
from coprobe.attacks.autoattack import AutoAttack
from coprobe.errors import InputError
from tests.attacks.small import convolutional, fingerprint, linear, trained

SLOW = [entry.name for entry in ATTACKS.entries() if issubclass(entry.value, AutoAttack)]
QUICK = [name for name in ATTACKS if name not in SLOW]
STEPPING = [entry.name for entry in ATTACKS.entries() if issubclass(entry.value, StepAttack)]
EVERY = pytest.mark.parametrize("spec", list(ATTACKS))
VARIANTS = ["fgsm:start=zero", "pgd:3:restarts=2:rule=always", "pgd:2:step-size=255:start=zero", "cw:4:rule=always"]
VARIANTS += ["pgd-eot:2:samples=3:noise=255:restarts=2"]

# (channels, height, width): height, width and channels all differ
SHAPES = [(3, 4, 5), (1, 6, 3), (2, 3, 7)]


def images(shape: tuple[int, int, int], batch: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, *shape, generator=generator)
    x[0, 0, 0, :2] = torch.tensor([0.0, 1.0])  # pixels at both ends
    return x, torch.randint(classes, (batch,), generator=generator)


def check(attack: Attack, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Attack, and demand everything that the contract says."""
    random.seed(3), np.random.seed(3), torch.manual_seed(3)  # noqa: NPY002
    before, given_x, given_y = fingerprint(model), x.clone(), y.clone()
    x_adv = attack(model, x, y, seed=5)
    assert fingerprint(model) == before
    assert torch.equal(x, given_x) and torch.equal(y, given_y)
    assert (x_adv.shape, x_adv.dtype, x_adv.device) == (x.shape, x.dtype, x.device)
    assert x_adv.isfinite().all() and not x_adv.requires_grad
    assert x_adv.data_ptr() != x.data_ptr()
    assert (x_adv - x).abs().max() <= attack.epsilon + 1e-6
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    again = attack(model, x, y, seed=5)
    assert torch.equal(again, x_adv)
    assert fingerprint(model) == before
    return x_adv


@pytest.mark.slow
@pytest.mark.parametrize("spec", [*QUICK, *VARIANTS])
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    shape=st.sampled_from(SHAPES),
    batch=st.sampled_from([1, 2, 3, 0]),
    classes=st.integers(2, 5),
    epsilon=st.sampled_from([0, 1]) | st.floats(0, 1),
    make=st.sampled_from([linear, convolutional]),
    seed=st.integers(0, 99),
)
def test_contract_of_quick_attacks(
    spec: str, shape: tuple[int, int, int], batch: int, classes: int, epsilon: float, make: Any, seed: int
) -> None:
    x, y = images(shape, batch or shape[2], classes, seed)  # 0 stands for as many as the width
    check(parse(spec, epsilon), make(shape, classes, seed), x, y)


@pytest.mark.slow
@pytest.mark.parametrize("spec", SLOW)
@pytest.mark.parametrize(("shape", "batch", "epsilon"), [((3, 4, 5), 5, 1.0), ((1, 6, 3), 1, 0.5), ((2, 3, 7), 3, 0.3)])
def test_contract_of_slow_attacks(spec: str, shape: tuple[int, int, int], batch: int, epsilon: float) -> None:
    model = convolutional(shape, 5)
    x, y = images(shape, batch, 5, 0)
    with torch.no_grad():
        y[-1] = model(x).argmax(1)[-1]  # one at least that has to be attacked
    check(parse(spec, epsilon), model, x, y)


@pytest.mark.slow
@EVERY
def test_epsilon_zero_moves_nothing(spec: str) -> None:
    model = linear((1, 6, 3), 4)
    x, _ = images((1, 6, 3), 1, 4, 0)
    with torch.no_grad():
        y = model(x).argmax(1)
    before = fingerprint(model)
    assert torch.equal(parse(spec, 0)(model, x, y), x)
    assert fingerprint(model) == before


@pytest.mark.slow
@EVERY
def test_breaks_what_is_classified_correctly(spec: str) -> None:
    model, x, y = trained()
    with torch.no_grad():
        correct = torch.nonzero(model(x).argmax(1) == y)[:3, 0]
        x, y = x[correct], y[correct]
        assert (model(check(parse(spec, 0.15), model, x, y)).argmax(1) != y).all()


@EVERY
@pytest.mark.parametrize("blows", [4, 8, 10])
def test_model_that_raises_is_left_as_it_was(spec: str, blows: int) -> None:
    x, _ = images((3, 4, 5), 2, 5, 0)
    model = convolutional((3, 4, 5), 5).eval()
    with torch.no_grad():
        y = model(x).argmax(1)
    calls = ATTACKS.entry(spec).facts["cost"]
    model = convolutional((3, 4, 5), 5, blows=min(blows, calls))
    before = fingerprint(model)
    # a radius of almost nothing, so that no attack is done before the fuse blows
    with pytest.raises(ArithmeticError, match="blown"):
        parse(spec, 1e-4)(model, x, y)
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    ("spec", "steps"), [(spec, False) for spec in ATTACKS] + [(spec, True) for spec in STEPPING], ids=str
)
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.rand(4, 5), torch.zeros(4).long(), "images must be a float tensor N×C×H×W, not torch.float32 (4, 5)"),
        (
            torch.zeros(1, 3, 4, 5, dtype=torch.uint8),
            torch.zeros(1).long(),
            "images must be a float tensor N×C×H×W, not torch.uint8 (1, 3, 4, 5)",
        ),
        (torch.rand(2, 3, 4, 5), torch.zeros(3).long(), "labels must be 2 int64 numbers, not torch.int64 (3,)"),
        (torch.rand(2, 3, 4, 5), torch.zeros(2), "labels must be 2 int64 numbers, not torch.float32 (2,)"),
        (torch.full((1, 3, 4, 5), 1.01), torch.zeros(1).long(), "images must lie in [0, 1]; normalisation "),
        (torch.full((1, 3, 4, 5), -0.01), torch.zeros(1).long(), "images must lie in [0, 1]; normalisation "),
        (torch.full((1, 3, 4, 5), torch.nan), torch.zeros(1).long(), "images must lie in [0, 1]; normalisation "),
    ],
)
def test_wrong_images_and_labels(spec: str, steps: bool, x: Tensor, y: Tensor, message: str) -> None:
    attack = parse(spec, 0.1)
    model = convolutional((3, 4, 5), 5)
    before = fingerprint(model)
    with pytest.raises(InputError) as error:
        attack.steps(model, x, y) if steps else attack(model, x, y)  # type: ignore[attr-defined]
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert fingerprint(model) == before and model[0][3].calls == 0


@pytest.mark.parametrize(
    ("spec", "steps"), [(spec, False) for spec in ATTACKS] + [(spec, True) for spec in STEPPING], ids=str
)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": -1}, "seed -1: must be at least 0"),
        ({"indices": torch.arange(3)}, "indices must be 2 int64 numbers, not torch.int64 (3,)"),
        ({"indices": torch.zeros(2)}, "indices must be 2 int64 numbers, not torch.float32 (2,)"),
    ],
    ids=["seed", "count", "type"],
)
def test_wrong_seeds_and_indices(spec: str, steps: bool, given: dict[str, Any], message: str) -> None:
    attack, model = parse(spec, 0.1), convolutional((3, 4, 5), 5)
    x, y = images((3, 4, 5), 2, 5, 0)
    with pytest.raises(InputError) as error:
        attack.steps(model, x, y, **given) if steps else attack(model, x, y, **given)  # type: ignore[attr-defined]
    assert str(error.value) == message and model[0][3].calls == 0


@pytest.mark.parametrize("spec", [*QUICK, *VARIANTS])
def test_an_image_is_attacked_alike_wherever_it_is(spec: str) -> None:
    """Its random numbers belong to its index in the data set: other images, their order and number do not matter."""
    model, x, y = trained()
    attack = parse(spec, 0.05)
    whole = attack(model, x, y, seed=3)
    rows = torch.tensor([40, 3, 17, 63, 8, 22, 9, 5, 31, 30, 29, 2, 1, 0, 50, 51, 52, 33])
    assert torch.equal(attack(model, x[rows], y[rows], seed=3, indices=rows), whole[rows])
    if getattr(attack, "start", "") != "zero":
        assert not torch.equal(attack(model, x[rows], y[rows], seed=3), whole[rows])


@pytest.mark.slow
@EVERY
def test_the_plain_way_gives_the_same_images(spec: str) -> None:
    model, x, y = trained()
    x, y = x[:8], y[:8]
    attack = parse(spec, 0.05)
    assert torch.equal(attack(model, x, y, seed=3, plain=True), attack(model, x, y, seed=3))
    with pytest.raises(InputError, match="images must be a float tensor"):
        attack(model, x[0], y, plain=True)


@EVERY
def test_no_images(spec: str) -> None:
    x_adv = parse(spec, 0.1)(convolutional((3, 4, 5), 5), torch.rand(0, 3, 4, 5), torch.zeros(0).long())
    assert x_adv.shape == (0, 3, 4, 5)


@pytest.mark.slow
@EVERY
@pytest.mark.parametrize("context", ["no_grad", "grad of x", "channels_last"])
def test_circumstances_do_not_matter(spec: str, context: str) -> None:
    model = convolutional((3, 4, 5), 5).eval()
    x, _ = images((3, 4, 5), 2, 5, 0)
    with torch.no_grad():
        y = model(x).argmax(1)
    expected = parse(spec, 0.5)(model, x, y)
    if context == "grad of x":
        x = x.requires_grad_()
    if context == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.set_grad_enabled(context != "no_grad"):
        x_adv = parse(spec, 0.5)(model, x, y)
    assert not x_adv.requires_grad and x.grad is None
    assert (x_adv - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("spec", STEPPING)
@pytest.mark.parametrize("abandoned", [False, True], ids=["stopped", "raised"])
def test_steps_leave_the_model_between_steps_and_when_abandoned(spec: str, abandoned: bool) -> None:
    x, y = images((3, 4, 5), 3, 5, 0)
    attack = parse(f"{spec}:rule=always", 0.1)
    fuse = 2 * getattr(attack, "samples", 1) + 1  # in the third step
    model = convolutional((3, 4, 5), 5, blows=fuse if abandoned and spec != "fgsm" else 0)
    before = fingerprint(model)
    taken = []
    try:
        for x_t in attack.steps(model, x, y):  # type: ignore[attr-defined]
            taken.append(x_t)
            assert fingerprint(model) == before
            if not abandoned and len(taken) == 2:
                break
    except ArithmeticError:
        assert len(taken) == 3  # x_0, x_1, x_2
    assert len(taken) >= 2
    assert fingerprint(model) == before


@EVERY
def test_debugger_keeps_its_trace_function(spec: str) -> None:
    def trace(frame: FrameType, event: str, argument: object) -> None:
        return None

    x, y = images((3, 4, 5), 1, 5, 0)
    for blows in (0, 8):  # 8 is where pyautoattack looks at the model under a trace function of its own
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            parse(spec, 0.001)(convolutional((3, 4, 5), 5, blows=blows), x, y)
        except ArithmeticError:
            pass
        finally:
            after = sys.gettrace()
            sys.settrace(before)
        assert after is trace


@EVERY
def test_registry_entry_says_what_it_is(spec: str) -> None:
    entry = ATTACKS.entry(spec)
    assert entry.summary and entry.source and "\n" not in entry.summary + entry.source
    assert entry.facts["cost"] >= 1
    assert entry.value.name == spec and entry.value.title and entry.value.__doc__


@EVERY
def test_default_spec_makes_the_attack_again(spec: str) -> None:
    attack = parse(spec, 0.1)
    assert parse(attack.spec, 0.1) == attack
    assert type(attack) is ATTACKS[spec]
    assert attack.spec == spec or attack.spec.startswith(f"{spec}:")
    assert not attack.options


@pytest.mark.parametrize("spec", SLOW)
def test_few_classes(spec: str) -> None:
    """Only the targeted loss of APGD-T needs four classes."""
    x, _ = images((1, 6, 3), 2, 2, 0)
    model = linear((1, 6, 3), 2)
    with torch.no_grad():
        y = model(x).argmax(1)
    before = fingerprint(model)
    if spec in ("aa", "aa:fast", "apgd-t"):
        with pytest.raises(InputError, match="needs at least 4 classes, and this model has 2; use pgd or cw"):
            parse(spec, 1)(model, x, y)
        assert fingerprint(model) == before
    else:
        assert (model(check(parse(spec, 1), model, x, y)).argmax(1) != y).all()


@pytest.mark.parametrize("spec", SLOW)
def test_double_images_are_refused_by_what_computes_in_float(spec: str) -> None:
    x, y = images((3, 4, 5), 2, 5, 0)
    with pytest.raises(InputError, match=r"computes in float32, and the images are torch.float64"):
        parse(spec, 0.1)(linear((3, 4, 5), 5).double(), x.double(), y)


def test_slow_attacks_are_known_to_be_slow() -> None:
    assert set(SLOW) == {"aa", "aa:fast", "apgd-ce", "apgd-t", "fab-t", "square"}
    assert all(ATTACKS.entry(name).facts["cost"] >= 100 for name in SLOW)
