"""Data-parallel training: what several processes do together is what one does.

Runs are compared in a network of float64. In float32 they can't be: signs of tiny gradients depend on the order of
sums, and a single process whose initial weights are changed by 1e-7 is 1e-2 away in its losses after four updates.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from coprobe.core.processes import Processes
from coprobe.core.randomness import generator_for
from coprobe.data import Batch, Loader, load
from coprobe.errors import InterruptedRunError, RunError
from coprobe.training import Recipe, Run, TrainingCallback, train
from coprobe.training.loop import TrainingLoop
from coprobe.training.memory import Memory
from coprobe.training.parallel import synchronise_batchnorm
from coprobe.training.update import AdversarialInputs, Pass, UpdateState, uniform
from tests.training.group import given_by, in_group
from tests.training.runs import MEASURED, weights

pytestmark = pytest.mark.procs

#: Updates with 16 and with 11 images: of 3 processes, parts of 5, 5, 6 and of 3, 4, 4.
IMAGES, BATCH = 27, 16
RECIPE = Recipe(
    data="digits", limit_train=IMAGES, held_out=10, arch="vgg11", width=4, augment="crop", eps_train=26, epochs=2,
    batch_size=BATCH, lr=0.05, sync_batchnorm=True,
)  # fmt: skip
RUNS = {
    "fgsm-rs": replace(RECIPE, method="fgsm-rs", arch="resnet18", epochs=1),
    "fgsm-mep": replace(RECIPE, method="fgsm-mep", average=0.5),
    "atas": replace(RECIPE, method="atas", options={"warm_up": 1}),
    "stable": replace(RECIPE, method="fgsm", epochs=1, stable_node="B", stable_weight=20.0),
    "gradalign": replace(RECIPE, method="gradalign", epochs=1, options={"weight": 0.2}),
    "free": replace(RECIPE, method="free", epochs=1, options={"replays": 2}),
    "multigrad": replace(RECIPE, method="multigrad", epochs=1, limit_train=10, batch_size=5),
    "cs-mep": replace(
        RECIPE, method="cs-mep", noise="both", co_node="B", co_top=20.0, co_weight=1.0, co_select="once", co_images=20
    ),
}
#: With a memory of the images and with running statistics that the attack reads, each process its own.
APART = replace(RUNS["atas"], sync_batchnorm=False, options={"warm_up": 0})


# What each process of a group does; it must be found by name.


def learn(processes: Processes, folder: Path) -> dict[str, Any]:
    """All runs, and the one of `fgsm-mep` that `stop` left, with its losses by update."""
    _compute_exactly()
    here = folder / f"runs-{processes.world_size}"
    names = RUNS if processes.world_size < 3 else ["fgsm-mep"]
    found = {name: [loss for _, loss in _updates(RUNS[name], here / name, processes)] for name in names}
    if processes.leads:
        shutil.copytree(folder / "stopped" / "fgsm-mep", here / "resumed")
    train(RUNS["fgsm-mep"], here / "resumed", processes=processes, resume=True)
    return found


def stop(processes: Processes, folder: Path) -> list[str]:
    """Stop runs in the middle of their second epoch by a signal to one process; say how each ended."""
    _compute_exactly()
    _save_slowly()
    stopped = []
    for name, recipe, target in (("fgsm-mep", RUNS["fgsm-mep"], 1), ("atas", APART, 0)):
        run, seen = Run(folder / "stopped" / name), []

        def hear(_: int, run: Run = run, seen: list[float] = seen, target: int = target) -> None:
            seen.append(run.resumable.stat().st_mtime if run.resumable.exists() else 0)
            if len(seen) == 3 and processes.rank == target:
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(InterruptedRunError) as error:
            train(recipe, run.directory, processes=processes, callback=TrainingCallback(on_batch=hear))
        assert run.resumable.stat().st_mtime > seen[-1], "a process was gone before the state was saved"
        stopped.append(f"{error.value.exit_code} {error.value}")
    train(APART, folder / "stopped" / "atas", processes=processes, resume=True)
    train(APART, folder / "runs-2" / "apart", processes=processes)
    return stopped


def diverge(processes: Processes, folder: Path) -> None:
    """A learning rate that is too high, in all processes."""
    recipe = replace(RECIPE, lr=1e30, schedule="constant")
    with pytest.raises(RunError, match="diverged in epoch 1"):
        train(recipe, folder / "diverged", processes=processes)


def look(processes: Processes, folder: Path) -> dict[str, Any]:
    """What a process sees of the batches of an epoch, and of what is drawn for them."""
    batches = list(_loader(processes).batches(1))
    unsynchronised = replace(RUNS["fgsm-rs"], sync_batchnorm=False)
    updates = _updates(unsynchronised, folder / f"look-{processes.world_size}", processes)
    return {
        "indices": [batch.indices for batch in batches],
        "images": [batch.images for batch in batches],
        "drawn": [uniform(batch, generator_for(0, "perturbation", 1)) for batch in batches],
        "fractions": [batch.fraction for batch in batches],
        "trained on": updates[0][0],
    }


def remember(processes: Processes, folder: Path) -> dict[str, Any]:
    """A memory that every batch of two epochs reads and writes, in float16."""
    memory = Memory(torch.arange(IMAGES * 6.0).view(IMAGES, 2, 3), processes=processes)
    read = []
    for epoch in range(2):
        for number, batch in enumerate(_loader(processes).batches(epoch)):
            read.append(memory.read(batch))
            memory.write(batch, read[-1] / 3 + number + batch.labels[:, None, None])
    rows = memory.gather()
    again = Memory(rows, processes=processes).gather()
    return {"read": read, "rows": rows, "again": again, "lost": _lost(processes)}


def talk(processes: Processes, folder: Path) -> dict[str, Any]:
    rank, cpu = processes.rank, torch.device("cpu")
    return {
        "sum": processes.sum(torch.tensor([1.0, rank])).tolist(),
        "shared": processes.broadcast({"rank": rank}),
        "gathered": processes.gather({"rank": rank}),
        "any": [processes.any(rank == last, cpu) for last in (0, processes.world_size - 1, processes.world_size)],
    }


def normalise(processes: Processes, folder: Path) -> dict[str, Any]:
    """Batch norm over all processes, and what one process computes on the whole batch."""
    generator = torch.Generator().manual_seed(0)
    whole = 3 + 2 * torch.randn(23, 5, 4, 3, generator=generator, dtype=torch.float64)
    weights = torch.randn(23, 5, 4, 3, generator=generator, dtype=torch.float64)
    first, end = (place * 23 // processes.world_size for place in (processes.rank, processes.rank + 1))
    norm = nn.BatchNorm2d(5).double()
    with torch.no_grad():
        norm.weight.copy_(torch.rand(5, generator=generator))
        norm.bias.copy_(torch.randn(5, generator=generator))
    synced = nn.Sequential(copy.deepcopy(norm))
    synchronise_batchnorm(synced)
    plain = _derivatives(norm, whole, weights)
    own = _derivatives(synced, whole[first:end], weights[first:end])
    for name in ("weight", "bias", "weight twice"):
        processes.sum(own[name])
    expected = {k: v[first:end] if len(v) == 23 else v for k, v in plain.items()}
    half = nn.Sequential(nn.BatchNorm2d(5))
    synchronise_batchnorm(half)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = half(whole[first:end].bfloat16())
    expected_rounded = nn.BatchNorm2d(5).double()(whole.bfloat16().double())[first:end]
    return {
        "own": own | dict(synced[0].named_buffers()),
        "expected": expected | dict(norm.named_buffers()),
        "evaluated": (synced.eval()(whole), norm.eval()(whole)),
        "rounded": (rounded, expected_rounded),
        "rounded mean": (half[0].running_mean, 0.1 * whole.mean((0, 2, 3))),
    }


def everything(processes: Processes, folder: Path) -> dict[str, Any]:
    works: list[Callable[[Processes, Path], Any]] = [talk, look, remember]
    works += [normalise] if processes.world_size > 1 else []
    works += [diverge, stop] if processes.world_size == 2 else []
    return {work.__name__: work(processes, folder) for work in (*works, learn)}


def _compute_exactly() -> None:
    """Make the networks of this process float64, look for signals after every update, and measure nothing."""
    import coprobe.training.assembly as assembly
    import coprobe.training.trainer as trainer
    from coprobe.training.monitor import Monitor

    untrained, cut = assembly._untrained, Loader._batch

    def exact(*given: Any) -> Any:
        checkpoint = untrained(*given)
        checkpoint.model.double().register_forward_pre_hook(lambda model, images: (images[0].double(),))
        return checkpoint

    if trainer._CHECK_EVERY > 1:  # once
        assembly._untrained, trainer._CHECK_EVERY = exact, 1
        Loader._batch = lambda *given: _widened(cut(*given))  # type: ignore[method-assign]
        Monitor.measure = lambda *given: dict.fromkeys(("clean", "fgsm", "pgd10"), 0.5)  # type: ignore[method-assign]


def _save_slowly() -> None:
    save = Run.save_state
    Run.save_state = lambda *given: (time.sleep(0.2), save(*given))[1]  # type: ignore[method-assign]


def _widened(batch: Batch) -> Batch:
    return replace(batch, images=batch.images.double())


def _updates(recipe: Recipe, out: Path, processes: Processes) -> list[tuple[Tensor, float]]:
    """Train; the images that each update sees, and its loss over the whole batch."""
    updates = []
    objective = TrainingLoop.objective

    def listen(loop: TrainingLoop, update: UpdateState) -> tuple[AdversarialInputs, Pass, Tensor]:
        inputs, final, loss = objective(loop, update)
        updates.append((final.images.detach(), processes.sum(loss.detach() * update.batch.fraction).item()))
        return inputs, final, loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLoop, "objective", listen)
        train(recipe, out, processes=processes)
    return updates


def _loader(processes: Processes) -> Loader:
    data = load("digits", "train").subset(torch.arange(IMAGES))
    return Loader(data, BATCH, shuffle=True, augment=True, flip=False, part=(processes.rank, processes.world_size))


def _lost(processes: Processes) -> list[bool]:
    """Whether the images of a batch are lost after those of the batch before were written as NaN."""
    memory = Memory(torch.zeros(IMAGES, 1), processes=processes)
    first, second = _loader(processes).batches()
    memory.write(first, torch.full((len(first.indices), 1), torch.nan))
    return [bool(memory.read(batch).isnan().any()) for batch in (first, second)]


def _derivatives(norm: nn.Module, images: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Values, gradients, and gradients of the squared gradients of a scalar that a penalty could be."""
    images = images.clone().requires_grad_()
    parameters = dict(zip(("weight", "bias"), norm.parameters(), strict=True))
    values = norm(images)
    total = (weights * values**3).sum()
    (gradient, *others) = torch.autograd.grad(total, [images, *parameters.values()], create_graph=True)
    twice = torch.autograd.grad(gradient.square().sum(), [images, parameters["weight"]])
    found = {"values": values, "images": gradient, "images twice": twice[0], "weight twice": twice[1]}
    return {k: v.detach().clone() for k, v in (found | dict(zip(parameters, others, strict=True))).items()}


# What the tests make of it.


@pytest.fixture(scope="session")
def folder(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """What a pair of processes, one alone and a trio wrote; the pair leaves a run for the others to resume."""
    return once("groups", lambda folder: [in_group(count, everything, folder) for count in (2, 1, 3)])


@pytest.fixture(scope="session")
def groups(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """What each process of these gave."""
    return {count: given_by(count, folder) for count in (1, 2, 3)}


def distance(run: Path, other: Path) -> float:
    """The largest difference of any weight or running statistic."""
    mine, theirs = (weights(which / "checkpoint.pt") for which in (run, other))
    return max(float((mine[name].double() - theirs[name].double()).abs().max()) for name in mine)


@pytest.mark.parametrize(("count", "name"), [*((2, name) for name in RUNS), (3, "fgsm-mep")])
def test_several_processes_train_as_one_does(groups: Any, folder: Path, count: int, name: str) -> None:
    (one,), several = groups[1], groups[count]
    assert len(one["learn"][name]) >= 2
    for process in several:
        assert process["learn"][name] == pytest.approx(one["learn"][name], abs=1e-9)
    mine, theirs = folder / f"runs-{count}" / name, folder / "runs-1" / name
    assert distance(mine, theirs) < 1e-6  # saved in float32
    left, right = (Run(run).history.drop(columns=MEASURED) for run in (mine, theirs))
    pd.testing.assert_frame_equal(left, right, rtol=0, atol=1e-7)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_run_stopped_in_two_processes_goes_on_in_any_number(groups: Any, folder: Path, count: int) -> None:
    resumed, whole = (folder / f"runs-{count}" / name for name in ("resumed", "fgsm-mep"))
    assert distance(resumed, whole) < (1e-12 if count == 2 else 1e-6)
    assert Run(resumed).history["train_loss"].to_list() == pytest.approx(
        Run(whole).history["train_loss"].to_list(), abs=1e-6
    )


def test_a_signal_to_one_process_stops_all(groups: Any) -> None:
    for process in groups[2]:
        first, second = process["stop"]
        assert re.fullmatch(r"143 stopped in epoch 2 and saved; 'coprobe train --resume --out .*' goes on", first)
        assert second.startswith("143 stopped in epoch 2")


def test_each_process_gets_its_own_running_statistics_back(groups: Any, folder: Path) -> None:
    assert distance(folder / "stopped" / "atas", folder / "runs-2" / "apart") == 0


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_batches_and_draws(groups: Any, count: int) -> None:
    (one,) = groups[1]
    parts = [process["look"] for process in groups[count]]
    for name in ("indices", "images", "drawn"):
        for number, expected in enumerate(one["look"][name]):
            assert torch.equal(torch.cat([part[name][number] for part in parts]), expected)
    assert [sum(part["fractions"][number] for part in parts) for number in (0, 1)] == pytest.approx([1, 1])
    assert [len(part["indices"][1]) for part in parts] == {2: [5, 6], 3: [3, 4, 4]}[count]
    # Signs of gradients that go through other batch statistics, and else nothing.
    changed = torch.cat([part["trained on"] for part in parts]) != one["look"]["trained on"]
    assert 0 < changed.double().mean() < 0.5


@pytest.mark.parametrize("count", [2, 3])
def test_a_divided_memory_is_that_of_one_process(groups: Any, count: int) -> None:
    expected = groups[1][0]["remember"]
    several = [process["remember"] for process in groups[count]]
    for number, read in enumerate(expected["read"]):
        assert torch.equal(torch.cat([process["read"][number] for process in several]), read)
    for process in several:
        assert torch.equal(process["rows"], expected["rows"])
        assert torch.equal(process["again"], expected["rows"])
        assert process["rows"].dtype == torch.float16
        assert process["lost"] == [True, False]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_processes_talk(groups: Any, count: int) -> None:
    for process in groups[count]:
        assert process["talk"] == {
            "sum": [count, sum(range(count))] if count > 1 else [1, 0],
            "shared": {"rank": 0},
            "gathered": [{"rank": rank} for rank in range(count)],
            "any": [True, True, False],
        }


@pytest.mark.parametrize("count", [2, 3])
def test_synchronised_batch_norm_is_that_of_the_whole_batch(groups: Any, count: int) -> None:
    for process in groups[count]:
        found = process["normalise"]
        assert set(found["own"]) == set(found["expected"])
        assert len(found["own"]) == 9
        for name, value in found["own"].items():
            assert torch.allclose(value, found["expected"][name], rtol=0, atol=1e-10), name
        torch.testing.assert_close(*found["evaluated"], rtol=0, atol=1e-10)
        rounded, expected = found["rounded"]
        assert rounded.dtype == torch.bfloat16
        torch.testing.assert_close(rounded.double(), expected, rtol=2**-8, atol=2**-8)
        torch.testing.assert_close(*(v.double() for v in found["rounded mean"]), rtol=0, atol=1e-3)
