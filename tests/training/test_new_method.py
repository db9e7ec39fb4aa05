"""What it takes to add a method that schedules dropout by the epoch and looks at the weights: this one class."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.utils.hooks import RemovableHandle

import coprobe
from coprobe.core.files import write_json
from coprobe.data import Batch
from coprobe.training import METHODS, Run
from coprobe.training.methods.base import check_range
from coprobe.training.methods.fgsm import FGSMTraining
from coprobe.training.update import AdversarialInputs, Pass, UpdateState
from tests.training.processes import Hit, train
from tests.training.references.common import EPSILON, At, Tiny, clip, context, make_batch, soft_cross_entropy, tiny
from tests.training.runs import MEASURED, QUICK
from tests.training.test_interruption import KILL, OFTEN
from tests.training.updates import assert_same_state, literal_update, loop_for, one_update


@dataclass(kw_only=True)
class FadingDropout(FGSMTraining):
    """FGSM with dropout before the last layer, less of it from epoch to epoch, and a penalty on that layer's weights.

    Args:
        rate: of the dropout in the first epoch.
        fade: how the rate falls to 0: evenly, or at once in the middle of the run.
        penalty: weight of the sum of squares.
    """

    rate: float = 0.5
    fade: Literal["even", "at-once"] = "even"
    penalty: float = 0.01
    hook: RemovableHandle = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_range("rate", self.rate, 0, 0.9)

    def rate_in(self, epoch: int) -> float:
        left = 1 - epoch / self.context.epochs
        return self.rate * (left if self.fade == "even" else float(left > 0.5))

    def perturb(self, update: UpdateState) -> AdversarialInputs:
        rate = self.rate_in(update.epoch)
        update.measured["dropout"] = torch.full((), rate, device=update.batch.images.device)
        self.hook = last_layer(update.model).register_forward_pre_hook(lambda _, inputs: dropout(inputs[0], rate))
        return super().perturb(update)

    def objective(self, update: UpdateState, inputs: AdversarialInputs, final: Pass) -> Tensor:
        squares = last_layer(update.model).weight.square().sum()
        return super().objective(update, inputs, final) + self.penalty * squares

    def after_backward(self, update: UpdateState, inputs: AdversarialInputs) -> None:
        self.hook.remove()


def last_layer(model: nn.Module) -> nn.Linear:
    *_, last = (module for module in model.modules() if isinstance(module, nn.Linear))
    return last


def register() -> None:
    METHODS.register("fading-dropout", summary="FGSM with fading dropout", source="a test", cost=1.0)(FadingDropout)


def literal_loss(model: Tiny, batch: Batch, rate: float) -> Tensor:
    """In the attack's pass and in the update's, features are multiplied by 0 or by 1 / (1 − rate)."""

    def loss(x: Tensor) -> Tensor:
        features = model.features(x).flatten(1)
        return soft_cross_entropy(model.linear(features * dropout(torch.ones_like(features), rate)), batch.labels)

    x = batch.images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x)
    images = clip(batch.images + EPSILON * gradient.sign(), 0, 1)
    return loss(images) + 0.01 * sum(weight**2 for weight in model.linear.weight.flatten())


@pytest.mark.parametrize(
    ("fade", "epoch", "rate"), [("even", 0, 0.5), ("even", 4, 0.3), ("at-once", 4, 0.5), ("at-once", 5, 0.0)]
)
def test_one_update_equals_the_literal_one(fade: Literal["even", "at-once"], epoch: int, rate: float) -> None:
    model, batch, method = tiny(), make_batch(), FadingDropout(epsilon=EPSILON, fade=fade)
    method.prepare(context())
    slow = copy.deepcopy(model)
    torch.manual_seed(0)
    literal_update(slow, literal_loss(slow, batch, rate))
    torch.manual_seed(0)
    one_update(loop_for(model, method), batch, At(epoch, 0))
    assert_same_state(model, slow)


@pytest.mark.slow
def test_it_trains_and_resumes_from_the_command_line(tmp_path: Path) -> None:
    recipe = replace(QUICK, method="fading-dropout", options={"fade": "at-once", "rate": 0.25}, epochs=2)
    write_json(tmp_path / "recipe.json", recipe.to_dict())
    whole, killed = Run(tmp_path / "whole"), Run(tmp_path / "killed")
    arguments = ("--recipe", str(tmp_path / "recipe.json"))
    assert train(whole.directory, *arguments, prepare=register).code == 0
    assert list(whole.history["dropout"]) == [0.25, 0.0]
    train(killed.directory, *arguments, *OFTEN, hits=(Hit("update", 2, KILL),), prepare=register)
    assert train(killed.directory, "--resume", prepare=register).code == 0
    assert coprobe.load(killed.checkpoint).digest == coprobe.load(whole.checkpoint).digest
    pd.testing.assert_frame_equal(*(run.history.drop(columns=MEASURED) for run in (killed, whole)))

    said = "coprobe: error: method fading-dropout: option fade takes one of even, at-once, not 'slowly'"
    ended = train(tmp_path / "new", *arguments, "--option", "fade=slowly", prepare=register)
    assert (ended.code, ended.lines) == (2, [said])
