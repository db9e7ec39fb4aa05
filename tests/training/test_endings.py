"""How runs end before or other than planned: early stopping, collapse, divergence, nothing learnt."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import coprobe
from coprobe.core.randomness import generator_for
from coprobe.data import Dataset, Loader, hold_out
from coprobe.errors import RunError
from coprobe.models import build
from coprobe.training import Recipe, Run, TrainingCallback, train
from coprobe.training.monitor import Monitor
from tests.training.references.common import clip
from tests.training.runs import MEASURED, QUICK, TINY, Told, same, weights

DROPPED = r"epoch (\d): PGD-5 accuracy on training images dropped from (.*) % to (.*) %; the weights before are kept"


def literal_pgd5_accuracy(state: dict[str, Tensor], recipe: Recipe, training: Dataset, epoch: int) -> float:
    """On the first batch of the epoch (from 0), attacked and judged in training mode."""
    loader = Loader(training, recipe.batch_size, shuffle=True, seed=recipe.seed)
    batch = next(loader.batches(epoch))
    model = build("resnet18", width=4, num_classes=10, in_channels=1).train()
    model.load_state_dict(state)
    epsilon, x = recipe.eps_train / 255, batch.images
    draw = torch.rand(x.shape, generator=generator_for(recipe.seed, "perturbation", epoch, 0))
    attacked = clip(x + epsilon * (2 * draw - 1), 0, 1)
    for _ in range(5):
        attacked.requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(model(attacked), batch.labels), attacked)
        attacked = clip(clip(attacked.detach() + 2 / 255 * gradient.sign(), x - epsilon, x + epsilon), 0, 1)
    return float((model(attacked).argmax(1) == batch.labels).float().mean())


@pytest.mark.slow
def test_early_stopping_keeps_the_weights_before_the_drop(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learning rate that ruins the weights from epoch 5 on; up to there, the check leaves no trace.

    Clean training at a radius of 1/255 is easy: with seeds 0 to 11, accuracy falls by 0.56 to 0.88 in epoch 5, and
    by at most 0.13 before.
    """
    monkeypatch.setattr(Recipe, "learning_rate", lambda recipe, progress: 0.05 if progress < 0.79 else 3.0)
    recipe = replace(QUICK, method="clean", held_out=10, eps_train=1, epochs=5, batch_size=16, augment="none", seed=1)
    kept: list[dict[str, Tensor]] = []
    unchecked = TrainingCallback(on_epoch=lambda row: kept.append(weights(tmp_path / "all" / "checkpoint.pt")))
    whole = train(recipe, tmp_path / "all", data=digits, callback=unchecked)
    training, _ = hold_out(digits, 64, 10)
    accuracies = [literal_pgd5_accuracy(state, recipe, training, epoch) for epoch, state in enumerate(kept)]
    assert [after < before - 0.2 for before, after in pairwise(accuracies)] == [False, False, False, True]

    told = Told()
    stopped = train(replace(recipe, early_stop=True), tmp_path / "stopped", data=digits, callback=told.callback)
    assert stopped.outcome is not None
    assert (stopped.outcome["ended_by"], stopped.outcome["epochs"]) == ("--early-stop", 4)
    (said,) = (re.match(DROPPED, message) for message in told.messages if "dropped" in message)
    assert said is not None and int(said[1]) == 5
    assert [float(said[2]), float(said[3])] == pytest.approx(
        [100 * accuracy for accuracy in accuracies[-2:]],
        abs=7,  # but for an image of 16 at the border
    )
    assert same(weights(stopped.checkpoint), kept[3])
    assert coprobe.load(stopped.checkpoint).metrics["epoch"] == 4
    pd.testing.assert_frame_equal(stopped.history.drop(columns=MEASURED), whole.history.iloc[:4].drop(columns=MEASURED))


@pytest.mark.slow
def test_an_early_stop_that_does_not_come_changes_nothing(run: Run, digits: Dataset, tmp_path: Path) -> None:
    checked = train(replace(TINY, early_stop=True), tmp_path / "checked", data=digits)
    state = torch.get_rng_state()
    torch.manual_seed(TINY.seed)
    build("resnet18", width=4, num_classes=10, in_channels=1)
    assert torch.equal(torch.get_rng_state(), state)  # nothing but the first weights was drawn from there
    assert checked.outcome == run.outcome
    assert same(weights(checked.checkpoint), weights(run.checkpoint))


def script(monkeypatch: pytest.MonkeyPatch, pgd10: list[float]) -> None:
    """Let these be the PGD-10 accuracies of the epochs."""
    rows = iter([{"clean": 0.9, "fgsm": 0.8, "pgd10": accuracy} for accuracy in pgd10])
    monkeypatch.setattr(Monitor, "measure", lambda *_: next(rows))


def test_a_collapse_is_said_once_when_it_happens(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, [0.45, 0.5, 0.24, 0.01, 0.0])
    told = Told()
    run = train(replace(QUICK, limit_train=32, epochs=5), tmp_path / "run", data=digits, callback=told.callback)
    assert told.messages == [
        "catastrophic overfitting in epoch 3: accuracy 24.0 % under PGD-10, at most 50.0 % before; 80.0 % under FGSM"
    ]
    assert told.after == [2]  # a row is given after what was said of it
    assert run.outcome is not None
    assert (run.outcome["collapse_epoch"], run.outcome["best_epoch"]) == (3, 2)
    assert coprobe.load(run.checkpoint).metrics["collapse_epoch"] == 3
    assert coprobe.load(run.best).metrics["collapse_epoch"] is None
    assert (run.outcome["ended_by"], run.outcome["epochs"]) == ("the schedule", 5)


def test_a_run_can_end_with_its_collapse(digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, [0.5, 0.24, 0.02, 0.0])
    recipe = replace(QUICK, limit_train=32, epochs=4, stop_at_collapse=True)
    run = train(recipe, tmp_path / "run", data=digits)
    assert run.outcome is not None
    ending = {key: run.outcome[key] for key in ("ended_by", "epochs", "collapse_epoch")}
    assert ending == {"ended_by": "--stop-at-collapse", "epochs": 3, "collapse_epoch": 2}
    assert coprobe.load(run.checkpoint).metrics["epoch"] == 3
    assert coprobe.load(run.best).metrics["epoch"] == 1


def test_a_run_that_never_learns_is_no_result(digits: Dataset, tmp_path: Path) -> None:
    told = Told()
    run = train(replace(QUICK, lr=0.0), tmp_path / "run", data=digits, callback=told.callback)
    assert told.messages == ["did not converge: clean accuracy is no better than guessing; no result"]
    assert run.outcome is not None
    assert run.outcome["converged"] is False


def test_divergence_keeps_the_last_good_checkpoint(digits: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(RunError, match=r"diverged in epoch 1 .* no checkpoint was written; lower --lr"):
        train(replace(TINY, lr=1e30, schedule="constant"), out, data=digits)
    assert not (out / "checkpoint.pt").exists()


def test_a_later_divergence_keeps_the_checkpoints_before(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recipe, "learning_rate", lambda recipe, progress: 0.05 if progress < 0.5 else 1e30)
    out = tmp_path / "run"
    with pytest.raises(RunError, match=r"diverged in epoch 2 .*the checkpoints of the epochs before are kept"):
        train(TINY, out, data=digits)
    assert coprobe.load(out / "checkpoint.pt").metrics["epoch"] == 1
    assert coprobe.load(out / "best.pt").metrics["epoch"] == 1
    assert list(Run(out).history["epoch"]) == [1]
    assert Run(out).outcome is None


@pytest.mark.parametrize(
    ("accuracies", "best", "collapse"), [([], 0, None), ([0.3, 0.4, 0.4, 0.2], 3, None), ([0.4, 0.5, 0.01, 0.0], 2, 3)]
)
def test_a_run_is_given_up_with_what_it_had(
    tmp_path: Path, accuracies: list[float], best: int, collapse: int | None
) -> None:
    run = Run(tmp_path)
    run.begin(QUICK, {"seed": 0})
    if accuracies:
        history = pd.DataFrame({"pgd10": accuracies}).assign(clean=0.9, fgsm=0.4)
        history.to_csv(tmp_path / "history.csv")
    run.resumable.write_bytes(b"state")
    run.give_up()
    assert run.outcome == {
        "ended_by": "divergence",
        "epochs": len(accuracies),
        "best_epoch": best,
        "collapse_epoch": collapse,
        "converged": False,
        "digests": {},
    }
    assert run.recipe == QUICK and not run.resumable.exists()
