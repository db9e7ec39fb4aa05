"""Increments against a literal loop over images, against attacks whose steps are known by hand, and in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from coprobe.attacks import AdversarialExamples, StepAttack, parse
from coprobe.data import Dataset
from coprobe.errors import InputError, RunError
from coprobe.metrics import ActivationIncrements, ChannelActivations, Increments
from coprobe.nodes import record

EPSILON, BATCH, SEED = 16 / 255, 4, 7
NODES = ["1", "2:in", "3", "5"]
PGD = "pgd:3:rule=always"


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 7, 3, stride=2), nn.BatchNorm2d(7), nn.Flatten(),
        nn.Linear(7 * 3 * 2, 4),
    )  # fmt: skip


def dataset(count: int = 10) -> Dataset:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, 7, 5), generator=generator, dtype=torch.uint8)
    return Dataset(images, torch.arange(count) % 4, tuple("abcd"), "random", "test")


def follow(model: nn.Module, data: Dataset, spec: str, nodes: list[str], *others: str, **settings: Any) -> Increments:
    """Increments under an attack, beside which others may be made."""
    attack = parse(spec, EPSILON)
    attacks = [parse(other, EPSILON) for other in others]
    examples = AdversarialExamples(model, data, [*attacks, attack], trajectories={attack.spec}, **settings)
    return ActivationIncrements(nodes=tuple(nodes), attack=attack.spec).measure(model, examples)


def increments(spec: str = PGD, **settings: object) -> Increments:
    settings = {"batch_size": BATCH, "seed": SEED, **settings}
    return follow(small_model(), dataset(), spec, NODES, **settings)


@pytest.fixture(scope="module")
def followed() -> Increments:
    return increments()


def activations(model: nn.Module, images: Tensor) -> dict[str, np.ndarray]:
    with torch.no_grad(), record(model, NODES) as seen:
        model(images)
    return {name: seen[name].double().numpy() for name in NODES}


def literal() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """S_k at every step against the clean image and against the step before, summed image by image."""
    model, attack, data = small_model().eval(), parse(PGD, EPSILON), dataset()
    assert isinstance(attack, StepAttack)
    against_clean = {name: np.zeros((4, 0)) for name in NODES}
    against_before = {name: np.zeros((4, 0)) for name in NODES}
    for start in range(0, 10, BATCH):
        x = data.images[start : start + BATCH].float() / 255
        indices = torch.arange(start, start + len(x))
        trail = list(attack.steps(model, x, data.labels[start : start + BATCH], seed=SEED, indices=indices))
        assert len(trail) == 4  # the start and three steps
        clean = activations(model, x)
        passed = [activations(model, x_step) for x_step in trail]
        for name in NODES:
            channels = clean[name].shape[1]
            values = channels * clean[name][0, 0].size
            for sums, others in ((against_clean, [clean] * 4), (against_before, [clean, *passed[:-1]])):
                part = np.zeros((4, channels))
                for step in range(4):
                    for image in range(len(x)):
                        for k in range(channels):
                            moved = passed[step][name][image, k] - others[step][name][image, k]
                            part[step, k] += (moved**2).sum() / values
                sums[name] = sums[name] + part if sums[name].size else part
    return against_clean, against_before


def test_everything_agrees_with_a_literal_loop(followed: Increments) -> None:
    against_clean, against_before = literal()
    for name in NODES:
        np.testing.assert_allclose(followed.s(name), against_clean[name], rtol=1e-12)
        np.testing.assert_allclose(followed.s_step(name)[1:], against_before[name][1:], rtol=1e-12)
        assert np.isnan(followed.s_step(name)[0]).all()
        rows = followed.table().query("node == @name")
        assert list(rows["step"].unique()) == [0, 1, 2, 3] and set(rows["images"]) == {10}
        for row in rows.to_dict("records"):
            assert row["s"] == pytest.approx(against_clean[name][row["step"], row["channel"]], rel=1e-12)
            if row["step"]:
                assert row["s_step"] == pytest.approx(against_before[name][row["step"], row["channel"]], rel=1e-12)
    assert (followed.frame.query("node == '3'")["positions"] == 6).all()


def test_last_step_is_the_result_of_the_attack(followed: Increments) -> None:
    examples = AdversarialExamples(small_model(), dataset(), [parse(PGD, EPSILON)], batch_size=BATCH, seed=SEED)
    statistics = ChannelActivations(nodes=tuple(NODES), attack=PGD).measure(small_model(), examples)
    for name in NODES:
        np.testing.assert_allclose(followed.s(name)[-1], statistics.s(name), rtol=1e-12)


def by_hand() -> tuple[nn.Module, Dataset]:
    """Grey images of two channels; raising the loss raises channel 0 and lowers channel 1, everywhere."""
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(2 * 6, 2, bias=False))
    with torch.no_grad():
        model[2].weight[0] = torch.tensor([-1.0] * 6 + [1.0] * 6)
        model[2].weight[1] = 0
    images = torch.full((3, 2, 3, 2), 128, dtype=torch.uint8)
    return model, Dataset(images, torch.zeros(3, dtype=torch.int64), ("a", "b"), "grey", "test")


def test_steps_of_a_linear_model_by_hand() -> None:
    moved = follow(*by_hand(), "pgd:4:step-size=5:start=zero:rule=always", ["0"], batch_size=2)
    # Every pixel is 5, 10, 15 and, at the radius, 16 of 255 away; three images, two channels.
    away = np.array([0, 5, 10, 15, 16]) / 255
    np.testing.assert_allclose(moved.s("0"), np.stack([3 * away**2 / 2] * 2, 1), rtol=1e-5)
    stepped = np.diff(away)
    np.testing.assert_allclose(moved.s_step("0")[1:], np.stack([3 * stepped**2 / 2] * 2, 1), rtol=1e-4)


def test_a_batch_that_is_done_again_in_halves_counts_once() -> None:
    class Cramped(nn.Identity):
        passes = 0

        def forward(self, x: Tensor) -> Tensor:
            self.passes += 1
            if len(x) > 1 and self.passes > 3:
                raise RuntimeError("CUDA out of memory")
            return x

    model, data = by_hand()
    spec = "pgd:2:start=zero:rule=always"
    whole = follow(model, data, spec, ["0"])
    cramped = Cramped()
    halves = follow(nn.Sequential(cramped, *model[1:]), data, spec, ["0"])  # type: ignore[index]
    assert cramped.passes > 12
    np.testing.assert_allclose(halves.s("0"), whole.s("0"), rtol=1e-6)
    assert set(halves.frame["images"]) == {3}


def test_the_seed_is_the_random_numbers(followed: Increments) -> None:
    pd.testing.assert_frame_equal(increments().frame, followed.frame)
    pd.testing.assert_frame_equal(increments(batch_size=3).frame, followed.frame, rtol=1e-6)
    assert increments(seed=8).s("1")[0].sum() != followed.s("1")[0].sum()


def test_attacks_without_steps_are_refused() -> None:
    with pytest.raises(InputError, match=r"'aa' does not hand out its steps; choose from .*fgsm.*pgd") as error:
        increments("aa")
    assert "apgd" not in str(error.value)


def test_no_images_and_unknown_nodes(followed: Increments) -> None:
    with pytest.raises(InputError, match="no images"):
        follow(small_model(), dataset(0), PGD, NODES)
    with pytest.raises(InputError, match="unknown node 'conv9'"):
        follow(small_model(), dataset(), PGD, ["conv9"])
    for read in (followed.s, followed.s_step):
        with pytest.raises(InputError, match="'4' is not in these increments, which hold 1, 2:in, 3, 5"):
            read("4")


def test_a_node_named_twice_counts_once() -> None:
    model, data = by_hand()
    assert len(follow(model, data, "fgsm", ["0", "0"]).frame) == 2 * 2


def test_model_that_gives_nan_is_an_error() -> None:
    model = small_model()
    with torch.no_grad():
        model[2].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(RunError, match="not finite"):
        follow(model, dataset(), PGD, ["3"])


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".json"])
def test_files_hold_all_of_it(followed: Increments, tmp_path: Path, suffix: str) -> None:
    followed.write(tmp_path / f"increments{suffix}")
    read = Increments.read(tmp_path / f"increments{suffix}")
    shapes = {"1": [5, 7, 5], "2:in": [5, 7, 5], "3": [7, 3, 2], "5": [4]}
    assert read.frame.attrs == followed.frame.attrs == {"attack": PGD, "shapes": shapes}
    pd.testing.assert_frame_equal(read.frame, followed.frame, check_dtype=False, rtol=1e-14, atol=0)
    np.testing.assert_allclose(read.s("1"), followed.s("1"), rtol=1e-13)


def test_damaged_and_foreign_files_are_input_errors(followed: Increments, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be read as increments"):
        Increments.read(tmp_path / "missing.parquet")
    followed.frame.drop(columns="step_squared").to_parquet(tmp_path / "foreign.parquet")
    with pytest.raises(InputError, match=r"no increments \(lacks step_squared\)"):
        Increments.read(tmp_path / "foreign.parquet")
