"""`ChannelActivations` and every derived value against literal NumPy formulas; files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from coprobe.attacks import AdversarialBatch
from coprobe.errors import InputError, RunError
from coprobe.metrics import ChannelActivations, ChannelStatistics
from coprobe.metrics.accumulator import SUMS
from coprobe.nodes import record

IMAGES, NODES = 11, ["0", "1", "2:in", "3", "5"]
SHAPES = {"0": [5, 7, 5], "1": [5, 7, 5], "2:in": [5, 7, 5], "3": [7, 3, 2], "5": [4]}


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 7, 3, stride=2), nn.BatchNorm2d(7), nn.Flatten(),
        nn.Linear(7 * 3 * 2, 4),
    )  # fmt: skip


def twins() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    clean = torch.rand(IMAGES, 3, 7, 5, generator=generator)
    return clean, (clean + 0.2 * torch.randn(clean.shape, generator=generator)).clamp(0, 1)


def batches(*sizes: int) -> list[AdversarialBatch]:
    clean, adversarial = twins()
    starts = np.cumsum((0, *sizes[:-1])).tolist()
    return [
        AdversarialBatch(
            start,
            torch.zeros(size, dtype=torch.int64),
            {"clean": clean[start : start + size], "pgd:10": adversarial[start : start + size]},
        )
        for start, size in zip(starts, sizes, strict=True)
    ]


def stored(node: str) -> tuple[np.ndarray, np.ndarray]:
    """Clean and adversarial activations at `node`, float64 (images, channels, positions)."""
    model = small_model().eval()
    seen: dict[str, list[Tensor]] = {"clean": [], "pgd:10": []}
    for batch in batches(4, 1, 6):  # as below, since the forward pass rounds differently in other batches
        for kind, images in batch.images.items():
            with torch.no_grad(), record(model, [node]) as recording:
                model(images)
            seen[kind].append(recording[node].double().reshape(*recording[node].shape[:2], -1))
    return torch.cat(seen["clean"]).numpy(), torch.cat(seen["pgd:10"]).numpy()


def measured(batches: list[AdversarialBatch], *nodes: str, model: nn.Module | None = None) -> ChannelStatistics:
    return ChannelActivations(nodes=nodes, attack="pgd:10").measure(model or small_model(), batches)


@pytest.fixture(scope="module")
def statistics() -> ChannelStatistics:
    return measured(batches(4, 1, 6), *NODES)


@pytest.mark.parametrize("node", NODES)
def test_everything_agrees_with_numpy(statistics: ChannelStatistics, node: str) -> None:
    clean, adversarial = stored(node)
    channels, positions = clean.shape[1:]
    squared = ((clean - adversarial) ** 2).sum(2)  # V^k(x), Eq. 6
    close = {"rtol": 1e-10, "atol": 1e-15}
    np.testing.assert_allclose(statistics.s(node), squared.sum(0) / (channels * positions), **close)
    np.testing.assert_allclose(statistics.v_act(node), np.sqrt(squared.sum(1)).mean(), **close)
    np.testing.assert_allclose(statistics.variance(node, "clean"), clean.var((0, 2)), **close)
    np.testing.assert_allclose(statistics.variance(node), adversarial.var((0, 2)), **close)
    table = statistics.table().query("node == @node").sort_values("channel")
    expected = {
        "t_act": np.tanh(100 * squared.mean(0) / (channels * positions)),
        "v_act": squared.mean(0),
        "mse": squared.mean(0) / positions,
        "mean_clean": clean.mean((0, 2)),
        "mean_change": (adversarial - clean).mean((0, 2)),
        "variance_clean": clean.var((0, 2)),
        "variance_adversarial": adversarial.var((0, 2)),
    }
    for column, values in expected.items():
        np.testing.assert_allclose(table[column], values, **close, err_msg=column)
    assert (table["images"] == IMAGES).all()
    assert list(table["channel"]) == list(range(channels))


@pytest.mark.parametrize("sizes", [(11,), (1,) * 11, (3, 8), (10, 1)])
def test_split_into_batches_does_not_matter(statistics: ChannelStatistics, sizes: tuple[int, ...]) -> None:
    other = measured(batches(*sizes), *NODES).frame
    for column in [*SUMS, "norm", "images", "positions", "channels"]:
        # Not 1e-12: the forward pass itself rounds differently in other batches.
        np.testing.assert_allclose(other[column], statistics.frame[column], rtol=1e-5, atol=1e-5)


def test_table_shows_salient_channels_first(statistics: ChannelStatistics) -> None:
    table = statistics.table()
    assert list(table["node"].unique()) == NODES
    assert table.groupby("node", sort=False)["t_act"].apply(lambda t: t.is_monotonic_decreasing).all()
    assert table.attrs == {"attack": "pgd:10", "alpha": 100.0, "reading": "mean", "shapes": SHAPES}


def by_hand(**columns: object) -> ChannelStatistics:
    """One node "n" of 2 channels and 6 positions."""
    zero = dict.fromkeys((*SUMS, "norm"), 0.0)
    row = {"node": "n", "channel": range(2), "channels": 2, "positions": 6, "images": 10}
    return ChannelStatistics(pd.DataFrame({**row, **zero, **columns}))


def test_readings_by_hand() -> None:
    # Two channels: S_k = ΣV / (N·H·W) = 0.12 / 12 and 0.6 / 12; 10 images.
    statistics = by_hand(difference_squared=[0.12, 0.6])
    np.testing.assert_allclose(statistics.s("n"), [0.01, 0.05], rtol=1e-14)
    np.testing.assert_allclose(statistics.t_act("n", reading="sum"), np.tanh([1, 5]), rtol=1e-14)
    np.testing.assert_allclose(statistics.t_act("n", reading="mean"), np.tanh([0.1, 0.5]), rtol=1e-14)
    np.testing.assert_allclose(statistics.t_act("n", reading="mse"), np.tanh([0.2, 1]), rtol=1e-14)
    np.testing.assert_allclose(statistics.t_act("n", alpha=20.0), np.tanh([0.02, 0.1]), rtol=1e-14)
    with pytest.raises(InputError, match=r"'median'.*mean, sum, mse"):
        statistics.t_act("n", reading="median")


def test_at_10000_images_t_is_tanh_of_s_over_100() -> None:
    statistics = by_hand(difference_squared=[300.0, 900.0], images=10_000)
    np.testing.assert_allclose(statistics.t_act("n"), np.tanh(statistics.s("n") / 100), rtol=1e-14)


def test_v_act_by_hand() -> None:
    # Two images with differences (3, 4) and (0, 1): the norms 5 and 1 have mean 3, not sqrt(26 / 2).
    clean = torch.zeros(2, 2)
    adversarial = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    batch = AdversarialBatch(0, torch.zeros(2), {"clean": clean, "pgd:10": adversarial})
    statistics = measured([batch], "0", model=nn.Sequential(nn.Identity()))
    assert statistics.v_act("0") == pytest.approx(3, rel=1e-15)


def test_variance_of_a_constant_is_not_negative() -> None:
    images = torch.full((7, 3, 5, 3), 0.1)
    batch = AdversarialBatch(0, torch.zeros(7), {"clean": images, "pgd:10": images})
    statistics = measured([batch], "0", model=nn.Sequential(nn.Identity()))
    for of in ("clean", "adversarial"):
        assert (statistics.variance("0", of) >= 0).all()
        np.testing.assert_allclose(statistics.variance("0", of), 0, atol=1e-16)


def test_model_that_gives_nan_is_an_error() -> None:
    model = small_model()
    with torch.no_grad():
        model[2].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(RunError, match="not finite"):
        measured(batches(11), "3", model=model)


def test_no_images_and_unknown_nodes(statistics: ChannelStatistics) -> None:
    with pytest.raises(InputError, match="no images"):
        measured([], "1")
    with pytest.raises(InputError, match="unknown node"):
        measured(batches(11), "conv9")
    with pytest.raises(InputError, match="'4' is not in these statistics"):
        statistics.s("4")


def test_recording_that_changes_the_logits_is_an_error() -> None:
    class Hooked(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1e-3 * len(self._forward_hooks)

    model = small_model()
    model[1] = Hooked()
    with pytest.raises(RunError, match="recording at 1 changes the logits"):
        measured(batches(11), "1", model=model)


def test_a_node_named_twice_counts_once() -> None:
    assert len(measured(batches(11), "1", "1").frame) == 5


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".json"])
def test_files_hold_all_of_it(statistics: ChannelStatistics, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"statistics{suffix}"
    statistics.write(path)
    read = ChannelStatistics.read(path)
    assert read.frame.attrs == statistics.frame.attrs == {"attack": "pgd:10", "shapes": SHAPES}
    pd.testing.assert_frame_equal(read.frame, statistics.frame, check_dtype=False, rtol=1e-14, atol=0)
    np.testing.assert_allclose(read.t_act("1"), statistics.t_act("1"), rtol=1e-13)


def test_damaged_and_foreign_files_are_input_errors(statistics: ChannelStatistics, tmp_path: Path) -> None:
    good = tmp_path / "good.parquet"
    statistics.write(good)
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(good.read_bytes()[:-100])
    foreign = tmp_path / "foreign.parquet"
    pd.DataFrame({"node": ["A"], "channel": [0]}).to_parquet(foreign)
    (tmp_path / "rows.json").write_text("[1, 2]")
    for name in ("cut.parquet", "missing.parquet", "rows.json", "good.txt"):
        with pytest.raises(InputError, match="can't be read as channel statistics"):
            ChannelStatistics.read(tmp_path / name)
    with pytest.raises(InputError, match=r"no channel statistics \(lacks adversarial"):
        ChannelStatistics.read(foreign)
