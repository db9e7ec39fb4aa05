"""Every probe, mask and attack leaves every family of networks as it was: after success, a wrong argument, an error."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _len_torch_function_stack

from coprobe.attacks import ATTACKS, AdversarialBatch, AdversarialExamples, parse
from coprobe.core.engine import frozen
from coprobe.data import Dataset
from coprobe.errors import InputError
from coprobe.metrics import Accuracy, ActivationIncrements, ChannelActivations, ChannelOverlap
from coprobe.metrics.attribution import Attribution
from coprobe.models import Classifier
from coprobe.nodes import NO_MASK, ChannelMask, check_neutral, guess_table, masked, places, record, tapped
from tests.attacks.small import fingerprint
from tests.families import CLASSES, FAMILIES, SHAPE, family

IMAGES = torch.rand(256, *SHAPE, generator=torch.Generator().manual_seed(1))
PGD = parse("pgd:2:rule=always", 0.1)


def batches() -> list[AdversarialBatch]:
    labels = torch.arange(4) % CLASSES
    return [
        AdversarialBatch(n, labels[n : n + 2], {"clean": IMAGES[n : n + 2], "a": IMAGES[n : n + 2] ** 2})
        for n in (0, 2)
    ]


def dataset() -> Dataset:
    pixels = (IMAGES[:4] * 255).to(torch.uint8)
    return Dataset(pixels, torch.arange(4) % CLASSES, tuple("abcd"), "random", "test")


def examples(model: nn.Module) -> AdversarialExamples:
    return AdversarialExamples(model, dataset(), [PGD], batch_size=3, trajectories={PGD.spec})


def two_passes(model: nn.Module, context: AbstractContextManager[Any]) -> None:
    with frozen(model), context:  # in training mode, the passes themselves would move batch norm
        model(IMAGES[:4])
        model(IMAGES[:2])


def attribute(method: str, model: nn.Module, node: str) -> object:
    return Attribution(node=node, attack="a", method=method).measure(model, batches())


@lru_cache
def least_certain(model: nn.Module) -> tuple[Tensor, Tensor]:
    """The image on which two classes are closest, which a slow attack breaks early, and its class."""
    with frozen(model), torch.no_grad():
        logits = model(IMAGES)
    first, second = logits.topk(2).values.T
    k = (first - second).argmin()
    return IMAGES[k, None], logits[k, None].argmax(1)


def attack(spec: str, model: nn.Module, wrong: int) -> Tensor:
    image, label = least_certain(model)
    labels = label.repeat(wrong + 1)
    return parse(spec, 1.0)(model, image, labels, seed=0)


#: What people do at a node of a model, with a channel that is there (0) or not (99).
OPERATIONS: dict[str, Callable[[nn.Module, str, int], object]] = {
    "record": lambda m, node, k: two_passes(m, record(m, [node, f"{node}:{k}"])),
    "mask": lambda m, node, k: two_passes(m, masked(m, {node: [k]})),
    "tap": lambda m, node, k: two_passes(m, tapped(m, f"{node}:{k}" if k else node)),
    "check": lambda m, node, k: check_neutral(m, IMAGES[:4], [node, f"{node}:{k}"]),
    "collect": lambda m, node, k: ChannelActivations(nodes=(node, f"{node}:{k}"), attack="a").measure(m, batches()),
    "increments": lambda m, node, k: ActivationIncrements(nodes=(node, f"{node}:{k}"), attack=PGD.spec).measure(
        m, examples(m)
    ),
    "overlap": lambda m, node, k: ChannelOverlap(node=node, attack="a", top=k + 1).measure(m, batches()),
    "evaluate": lambda m, node, k: Accuracy(attacks=("a",), masks=(NO_MASK, ChannelMask({node: (k,)}, "one"))).measure(
        m, batches()
    ),
    "attribution": lambda m, node, k: attribute("gradient-x-activation", m, f"{node}:{k}" if k else node),
    "conductance": lambda m, node, k: attribute("conductance", m, f"{node}:{k}" if k else node),
    "places": lambda m, node, k: places(m, (SHAPE[0] + k, *SHAPE[1:])),
    "guess": lambda m, node, k: guess_table(m, (SHAPE[0] + k, *SHAPE[1:])),
    **{spec: lambda m, node, k, spec=spec: attack(spec, m, k) for spec in ATTACKS},  # type: ignore[misc]
}


def head_of(model: nn.Module) -> nn.Module:
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


@pytest.fixture(scope="module", params=FAMILIES)
def subject(request: pytest.FixtureRequest) -> tuple[nn.Module, str]:
    """A model in a state that is easy to disturb: two modes, two `requires_grad`, a `.grad`, a hook; and its node."""
    model = Classifier(family(request.param), [0.4] * 3, [0.3] * 3).train()
    some = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d | nn.LayerNorm)][-1]
    some.eval()
    some.weight.requires_grad_(False)
    head = head_of(model)
    head.weight.grad = torch.randn_like(head.weight)
    head.register_forward_hook(lambda module, inputs, output: None)
    return model, FAMILIES[request.param][1]


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_everything_is_as_before(subject: tuple[nn.Module, str], operation: str) -> None:
    model, node = subject
    operate = OPERATIONS[operation]
    before = fingerprint(model)

    operate(model, node, 0)
    assert fingerprint(model) == before, "after success"

    with pytest.raises((InputError, RuntimeError, AssertionError)):
        operate(model, node, 99)
    assert fingerprint(model) == before, "after a wrong argument"

    for blows in (1, 2):
        calls = []

        def fail(*_: object, calls: list[None] = calls, blows: int = blows) -> None:
            calls.append(None)
            if len(calls) == blows:
                raise ArithmeticError("blown")

        handle = head_of(model).register_forward_pre_hook(fail)
        with pytest.raises(ArithmeticError, match="blown"):
            operate(model, node, 0)
            assert len(calls) < blows, "nobody may swallow an error"
            raise ArithmeticError("blown: never, since there are too few passes")
        handle.remove()
        assert fingerprint(model) == before, "after an error inside the model"
    assert _len_torch_function_stack() == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_recording_and_masking_tell_the_same_of_every_family(name: str) -> None:
    """The masked channel of a node is what is missing, and all that is missing, in what comes after."""
    model, node = Classifier(family(name)).eval(), FAMILIES[name][1]
    with torch.no_grad(), record(model, [node]) as seen, masked(model, {node: [1]}), record(model, [node]) as left:
        changed = model(IMAGES)
    expected = seen[node].clone()
    assert expected[:, 1].any()
    expected[:, 1] = 0
    assert torch.equal(left[node], expected)
    assert not torch.equal(changed, model(IMAGES))
