"""AutoAttack, its parts and its members against the package that implements them, called directly."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations, islice
from typing import Any, TypeVar

import pyautoattack
import pyautoattack.autoattack as package
import pytest
import torch
from torch import Tensor, nn

from coprobe.attacks import ATTACKS, AdversarialExamples, Attack, parse, project
from coprobe.attacks.autoattack import AA, MEMBERS, AutoAttack, stages_of
from coprobe.attacks.base import PURPOSE
from coprobe.attacks.stages import Stage, Stages
from coprobe.core.engine import FULL
from coprobe.core.processes import Processes
from coprobe.core.randomness import key_of
from coprobe.data import Dataset
from coprobe.data.stream import bounds
from coprobe.errors import InputError
from coprobe.metrics import Accuracy
from tests.attacks.small import convolutional, trained

T = TypeVar("T")

SEED = 11
EPSILON = 0.1  # some images break and some do not

RUNNERS = {
    "apgd-ce": package.APGDAttack,
    "apgd-t": package.APGDAttack_targeted,
    "fab-t": package.FABAttack_PT,
    "square": package.SquareAttack,
}
SUBSETS = [subset for count in range(1, 5) for subset in combinations(MEMBERS, count)]


class Coarse(nn.Module):
    """Sees its images rounded, so that gradients say nothing: each member breaks images that those before it can't."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network((20 * x).round() / 20)


class Exhausted(nn.Module):
    """Has memory for so many images at once."""

    def __init__(self, network: nn.Module, most: int) -> None:
        super().__init__()
        self.network, self.most = network, most

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError
        return self.network(x)


def coarse(count: int = 16) -> tuple[nn.Module, Tensor, Tensor]:
    model, x, y = trained()
    return Coarse(model).eval(), x[:count], y[:count]


def wrap(monkeypatch: pytest.MonkeyPatch, runner: type, before: Callable[[Any, Tensor], None]) -> None:
    """Call `before` with the package's attack and its images, whenever it begins."""
    perturb = runner.perturb  # type: ignore[attr-defined]

    def wrapped(self: Any, x: Tensor, y: Tensor) -> Tensor:
        before(self, x)
        return perturb(self, x, y)

    monkeypatch.setattr(runner, "perturb", wrapped)


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The members with 10 of their 100 steps (and see conftest.py)."""

    def shorten(runner: Any, x: Tensor) -> None:
        assert runner.n_iter in (100, 10)  # again for its second batch
        runner.n_iter = 10

    for runner in list(RUNNERS.values())[:3]:
        wrap(monkeypatch, runner, shorten)


def direct(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    members: tuple[str, ...],
    seed: int = SEED,
    first: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    """AutoAttack as its authors show it: one call, of the standard version or with its members chosen."""
    state = torch.get_rng_state()
    chosen = {"version": "standard"} if members == MEMBERS else {"version": "custom", "attacks": list(members)}
    adversary = pyautoattack.AutoAttack(model, norm="Linf", eps=EPSILON, seed=key_of(seed, PURPOSE, first), **chosen)
    adversary.apgd.n_restarts = 1
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = 3  # of four classes
    x_adv, _ = adversary.run_standard_evaluation(x, y, batch_size=batch_size or len(x))
    torch.set_rng_state(state)
    return project(x_adv, x, EPSILON)


def batched(items: Iterable[T], count: int) -> Iterator[tuple[T, ...]]:
    coming = iter(items)
    while some := tuple(islice(coming, count)):
        yield some


def is_right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1) == y


def check_is_direct(attack: Attack, members: tuple[str, ...]) -> None:
    model, x, y = coarse()
    x_adv = attack(model, x, y, seed=SEED)
    assert torch.equal(x_adv, direct(model, x, y, members))
    broken = is_right(model, x, y) & ~is_right(model, x_adv, y)
    assert torch.equal((x_adv != x).flatten(1).any(1), broken), "the others come back as they are"
    assert broken.sum() < len(x)


@pytest.mark.slow
@pytest.mark.parametrize("members", SUBSETS, ids="+".join)
def test_a_batch_is_the_package_called_once_with_all_members(members: tuple[str, ...]) -> None:
    check_is_direct(parse(f"aa:members={'+'.join(members)}", EPSILON), members)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "members"), [*((member, (member,)) for member in MEMBERS), ("aa", MEMBERS), ("aa:fast", MEMBERS[:2])]
)
def test_names_stand_for_these_members(spec: str, members: tuple[str, ...]) -> None:
    check_is_direct(parse(spec, EPSILON), members)


def test_seed_is_that_of_the_first_image() -> None:
    model, x, y = coarse(6)
    attack = parse("square", EPSILON)
    crafted = [
        attack(model, x, y, seed=seed, indices=first + torch.arange(6)) for seed, first in ((0, 0), (0, 5), (1, 0))
    ]
    expected = [direct(model, x, y, ("square",), seed, first) for seed, first in ((0, 0), (0, 5), (1, 0))]
    assert all(map(torch.equal, crafted, expected))
    assert not any(torch.equal(one, other) for one, other in combinations(crafted, 2))


@pytest.mark.slow
@pytest.mark.parametrize("order", [MEMBERS, MEMBERS[::-1]], ids=["as they run", "backwards"])
def test_each_member_sees_what_those_before_it_left(monkeypatch: pytest.MonkeyPatch, order: tuple[str, ...]) -> None:
    model, x, y = coarse()
    left = [is_right(model, x, y)]
    for count in range(1, 5):
        left.append(is_right(model, direct(model, x, y, MEMBERS[:count]), y))
    seen: list[tuple[str, Tensor]] = []
    for member, runner in RUNNERS.items():
        wrap(monkeypatch, runner, lambda _, x, member=member: seen.append((member, x.clone())))  # type: ignore[misc]
    attack = parse(f"aa:members={'+'.join(order)}", EPSILON)
    attack(model, x, y, seed=SEED)
    assert [member for member, _ in seen] == list(MEMBERS)
    assert all(torch.equal(given, x[rows]) for (_, given), rows in zip(seen, left[:-1], strict=True))
    counts = [int(rows.sum()) for rows in left]
    assert counts[0] < len(x) and len(set(counts)) >= 4, "images that are wrong anyway, and members that break some"
    stages = stages_of([attack])
    assert [stage["images"] for stage in stages] == counts[:-1]
    assert [stage["images"] - stage["broken"] for stage in stages] == counts[1:]


@pytest.mark.slow
@pytest.mark.parametrize("plain", [False, True])
def test_members_go_through_a_data_set_in_full_batches_of_what_is_left(
    monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    model, x, y = coarse(40)
    data = Dataset((255 * x).round().byte(), y, tuple("abcd"), "made up", "test")
    attack = parse("aa:members=apgd-ce+square", EPSILON)
    assert attack.unit(4) == 16
    seen: list[tuple[str, int]] = []
    for member in ("apgd-ce", "square"):
        wrap(monkeypatch, RUNNERS[member], lambda _, x, member=member: seen.append((member, len(x))))  # type: ignore[misc]
    examples = AdversarialExamples(model, data, [attack], batch_size=4, seed=SEED, plain=plain)
    crafted = list(examples)
    given, seen = seen, []
    assert [len(batch.labels) for batch in crafted] == [4] * 10
    units = [(first, min(first + 16, 40)) for first in range(0, 40, 16)]
    exact = data.images.float() / 255
    expected = [
        direct(model, exact[first:stop], y[first:stop], ("apgd-ce", "square"), first=first, batch_size=4)
        for first, stop in units
    ]
    assert torch.equal(torch.cat([batch.images[attack.spec] for batch in crafted]), torch.cat(expected))
    assert given == seen and 4 in {count for member, count in seen if member == "square"}
    stages = stages_of([attack])
    for stage in stages:
        assert stage["images"] == sum(count for member, count in given if member == stage["member"])
    assert stages[0]["images"] - stages[0]["broken"] == stages[1]["images"]


@pytest.mark.parametrize("portion", [3, 7, 32, 64, 100])
@pytest.mark.parametrize("total", [1, 15, 16, 200, 256, 266, 271, 272, 326, 519, 520, 1000])
def test_several_processes_have_whole_units(total: int, portion: int) -> None:
    unit = parse("aa", EPSILON).unit(portion)

    def units(first: int, stop: int) -> list[tuple[tuple[int, int], ...]]:
        return list(batched(bounds(first, stop, portion), unit // portion))

    for count in (2, 3, 8):
        shares = [Processes(rank, count).shard(total, math.lcm(FULL, unit), FULL) for rank in range(count)]
        assert [one for share in shares for one in units(*share)] == units(0, total)


def test_memory_that_runs_out_halves_the_batches_of_a_unit() -> None:
    model, x, y = coarse(12)
    short = Exhausted(model, 5)
    data = Dataset((255 * x).round().byte(), y, tuple("abcd"), "made up", "test")
    attack = parse("square", EPSILON)
    examples = AdversarialExamples(short, data, [attack], seed=SEED)
    (batch,) = examples
    exact = data.images.float() / 255
    assert torch.equal(batch.images["square"], direct(model, exact, y, ("square",), batch_size=3))
    assert examples.size.now == 3


def test_gains_add_up_to_the_accuracy_of_a_whole_data_set() -> None:
    model, x, y = coarse(20)
    data = Dataset((255 * x).round().byte(), y, tuple("abcd"), "made up", "test")
    attacks = [parse("aa", EPSILON), parse("aa:fast", EPSILON), parse("pgd", EPSILON), parse("apgd-ce", EPSILON)]
    began = time.perf_counter()
    examples = AdversarialExamples(model, data, attacks, batch_size=8, seed=SEED)
    evaluation = Accuracy(attacks=("aa", "aa:fast")).measure(model, examples)
    passed = time.perf_counter() - began
    stages = stages_of(attacks)
    assert [(stage["attack"], stage["member"]) for stage in stages] == [
        *(("aa", member) for member in MEMBERS),
        *(("aa:fast", member) for member in MEMBERS[:2]),
    ]
    assert sum(stage["seconds"] for stage in stages) < passed
    for spec in ("aa", "aa:fast"):
        mine = [stage for stage in stages if stage["attack"] == spec]
        accuracy = evaluation.accuracy("clean")
        for stage in mine:
            accuracy -= stage["gained"]
            assert stage["accuracy"] == pytest.approx(accuracy) and stage["n"] == 20
            assert stage["seconds"] > 0
        assert evaluation.accuracy(spec) == pytest.approx(accuracy)
        assert sum(stage["share"] for stage in mine) == pytest.approx(1)
    assert evaluation.accuracy("aa") < evaluation.accuracy("aa:fast") < evaluation.accuracy("clean")


def test_members_that_nothing_is_left_for_have_empty_stages() -> None:
    model, x, y = trained()
    wrong = (model(x[:3]).argmax(1) + 1) % 4
    attack = parse("aa", EPSILON)
    assert torch.equal(attack(model, x[:3], wrong), x[:3])
    assert attack(model, x[:0], y[:0]).shape == x[:0].shape
    nothing = {"n": 3, "images": 0, "broken": 0, "accuracy": 0, "gained": 0, "seconds": 0, "share": 0}
    assert stages_of([attack]) == [{"attack": "aa", "member": member, **nothing} for member in MEMBERS]


def test_a_batch_that_failed_is_not_in_the_stages() -> None:
    """Memory that ran out is one reason; then the batch comes again in halves."""
    model, (_, x, y) = convolutional((1, 6, 5), 4, blows=60), trained()
    with torch.no_grad():
        y = model(x[:4]).argmax(1)
    attack = parse("aa:fast", 1e-4)
    with pytest.raises(ArithmeticError):
        attack(model, x[:4], y)
    assert stages_of([attack]) == []


def test_stages_of_several_processes_add_up_and_their_seconds_are_those_of_the_slowest() -> None:
    mine, others, idle = Stages(), Stages(), Stages()
    mine.add(10, {"apgd-ce": Stage(8, 5, 2.0), "square": Stage(3, 0, 6.0)})
    mine.add(2, {"apgd-ce": Stage(2, 1, 1.0), "square": Stage(1, 1, 0.5)})
    others.add(4, {"apgd-ce": Stage(4, 0, 1.0), "square": Stage(4, 2, 7.5)})
    for state in (others.state, idle.state):
        mine.merge_state(state)
    idle.merge_state(others.state)
    assert mine.rows() == [
        {"member": "apgd-ce", "n": 16, "images": 14, "broken": 6, "accuracy": 0.5, "gained": 0.375, "seconds": 3.0,
         "share": 3 / 10.5},
        {"member": "square", "n": 16, "images": 8, "broken": 3, "accuracy": 0.3125, "gained": 0.1875, "seconds": 7.5,
         "share": 7.5 / 10.5},
    ]  # fmt: skip
    assert idle.state == others.state


@pytest.mark.parametrize(
    ("given", "spec", "label"),
    [
        ("aa", "aa", "AA"),
        ("aa:members=square+apgd-t+fab-t+apgd-ce", "aa", "AA"),
        ("aa:fast", "aa:fast", "AA-fast"),
        ("aa:members=square+apgd-ce", "aa:members=apgd-ce+square", "AA (APGD-CE + Square)"),
        ("aa:members=apgd-t+apgd-ce", "aa:members=apgd-ce+apgd-t", "AA (APGD-CE + APGD-T)"),
        ("aa:members=fab-t", "aa:members=fab-t", "AA (FAB-T)"),
    ],
)
def test_only_the_standard_version_is_called_aa(given: str, spec: str, label: str) -> None:
    attack = parse(given, EPSILON)
    assert (attack.spec, attack.label) == (spec, label)
    assert parse(spec, EPSILON) == attack and parse(spec, EPSILON).label == label


def test_standard_members_are_in_the_order_of_their_cost() -> None:
    assert sorted(MEMBERS, key=lambda member: ATTACKS.entry(member).facts["cost"]) == list(MEMBERS)
    costs = {spec: ATTACKS.entry(spec).facts["cost"] for spec in ("aa", "aa:fast", *MEMBERS)}
    assert costs["aa"] == sum(costs[member] for member in MEMBERS)
    assert costs["aa:fast"] == costs["apgd-ce"] + costs["apgd-t"]


def test_instances_do_not_share_their_stages() -> None:
    one, other = AA(epsilon=EPSILON), AA(epsilon=EPSILON)
    one.stages.add(1, {"square": Stage(1, 0, 0.1)})
    assert other.stages.images == 0 and one == other


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("aa:members=apgd-ce+sqare", "unknown member of AutoAttack 'sqare'; did you mean square?"),
        ("aa:members=", "unknown member of AutoAttack ''; choose from apgd-ce, apgd-t, fab-t, square"),
        ("aa:members=square+apgd-ce+square", "aa: the member square is named twice; keep one"),
        ("aa:fats", "attack 'aa:fats': 'fats' is no option of aa; it takes fast, members"),
        ("aa:fast:10", "attack 'aa:fast:10': '10' is no option of aa:fast; it takes no options"),
        ("aa-fast", "unknown attack 'aa-fast'; did you mean aa:fast or fab-t?"),
        ("fast", "unknown attack 'fast'; did you mean aa:fast or fab-t or fgsm?"),
    ],
)
def test_what_cannot_be_chosen(spec: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse(spec, EPSILON)
    assert str(error.value) == message


@pytest.mark.parametrize("spec", ["aa:members=apgd-t+square", "aa:members=fab-t+square"])
def test_only_what_holds_apgd_t_needs_four_classes(spec: str) -> None:
    model = convolutional((1, 6, 3), 3).eval()
    x = torch.rand(1, 1, 6, 3, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    attack = parse(spec, 1)
    if "apgd-t" in spec:
        with pytest.raises(InputError) as error:
            attack(model, x, y)
        assert str(error.value) == "AA (APGD-T + Square) needs at least 4 classes, and this model has 3; use pgd or cw"
    else:
        assert not is_right(model, attack(model, x, y), y).any()


def test_every_attack_by_the_package_is_named_here() -> None:
    assert {entry.name for entry in ATTACKS.entries() if issubclass(entry.value, AutoAttack)} == {
        "aa", "aa:fast", *MEMBERS,
    }  # fmt: skip
