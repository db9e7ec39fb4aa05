"""Nodes whose first axis is not the images: rows of an image are taken together, and what are none is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coprobe.attacks import AdversarialBatch
from coprobe.errors import InputError
from coprobe.metrics import ChannelActivations, ChannelStatistics
from coprobe.nodes import describe_shape, guess_table, masked, places, record

SIDE = 8


class Net(nn.Module):
    """A convolution, something that moves images, a ReLU, and something that moves them back."""

    def __init__(self, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU()
        self.there, self.back = there, back or (lambda x: x)

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.relu(self.there(self.conv(x)))).flatten(1)


def halves(x: Tensor) -> Tensor:
    return x.unflatten(3, (2, -1)).permute(0, 3, 1, 2, 4).flatten(0, 1)


def tokens_of_windows(x: Tensor) -> Tensor:
    x = x.unflatten(2, (2, 4)).unflatten(4, (2, 4))
    return x.permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, 6)


#: Ways to fold an image's parts into the batch: how, how many, at which axis the channels are then.
FOLDED: dict[str, tuple[Callable[[Tensor], Tensor], int, int]] = {
    "views, one after the other": (lambda x: torch.cat([x, x.flip(3)]), 2, 1),
    "views, image by image": (lambda x: torch.stack([x, x.flip(3), 2 * x], 1).flatten(0, 1), 3, 1),
    "crops": (lambda x: torch.cat([x[..., :5, :5], x[..., 3:, :5], x[..., :5, 3:], x[..., 3:, 3:]]), 4, 1),
    "halves": (halves, 2, 1),
    "windows of tokens": (tokens_of_windows, 4, 2),
    "views of halves": (lambda x: halves(torch.cat([x, 3 * x])), 4, 1),
    "positions": (lambda x: x.permute(0, 2, 3, 1).reshape(-1, 6), 64, 1),
    "rows": (lambda x: x.permute(2, 0, 1, 3).flatten(0, 1), 8, 1),
}


def batches(size: int, count: int = 20) -> list[AdversarialBatch]:
    clean, adversarial = (torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    return [
        AdversarialBatch(
            start,
            torch.zeros(len(clean[start : start + size]), dtype=torch.int64),
            {"clean": clean[start : start + size], "a": adversarial[start : start + size]},
        )
        for start in range(0, count, size)
    ]


def measured(model: nn.Module, size: int, node: str = "relu") -> ChannelStatistics:
    return ChannelActivations(nodes=(node,), attack="a").measure(model, batches(size))


@pytest.mark.parametrize("way", FOLDED)
def test_v_act_is_that_of_images(way: str) -> None:
    there, rows, axis = FOLDED[way]
    model = Net(there).eval()
    (place,) = places(model, (3, SIDE, SIDE))
    assert (place.rows, place.axis, place.shape[0]) == (rows, axis, 6)
    total, channels = 0.0, torch.zeros(6, dtype=torch.float64)
    for one in batches(1):
        with torch.no_grad():
            clean, moved = (there(model.conv(one.images[name])).relu().double() for name in ("clean", "a"))
        assert len(clean) == rows
        total += float((clean - moved).norm())
        channels += (clean - moved).square().movedim(axis, 0).flatten(1).sum(1)
    for size in (1, 5, 20):
        found = measured(model, size)
        assert found.v_act("relu") == pytest.approx(total / 20, rel=1e-6)
        positions = 6 * int(found.frame["positions"].iloc[0])
        assert found.t_act("relu") == pytest.approx(torch.tanh(100 * channels / positions / 20).numpy(), rel=1e-5)
    assert found.frame.attrs["rows"] == {"relu": rows}
    assert describe_shape(place.shape, place.rows).endswith(f", {rows} rows an image")


@pytest.mark.parametrize("way", FOLDED)
def test_a_mask_is_at_all_rows(way: str) -> None:
    there, _, axis = FOLDED[way]
    model, x = Net(there).eval(), batches(3)[0].images["clean"]
    expected = there(model.conv(x)).relu()
    expected.select(axis, 2).zero_()
    with torch.no_grad(), masked(model, {"relu": [2]}), record(model, ["relu", "relu:3"]) as seen:
        assert torch.equal(model(x), expected.flatten(1))
    assert len(seen["relu"]) == len(seen["relu:3"]) == 3 and not seen["relu"][:, 2].any()


def constant_row(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[:1])])


@pytest.mark.parametrize(
    ("there", "back", "rows"),
    [
        (constant_row, lambda x: x[:-1], "2 for one image, 4 for three"),
        (lambda x: torch.cat([x, torch.ones(3, *x.shape[1:])]), lambda x: x[:-3], "4 for one image, 6 for three"),
        (lambda x: x.sum(0, keepdim=True), lambda x: x.expand(3, -1, -1, -1), "1 for one image, 1 for three"),
        (lambda x: x.flatten(1) @ x.flatten(1).T, None, "1 for one image, 3 for three"),
    ],
)
def test_what_has_no_rows_of_images_is_refused(
    there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor] | None, rows: str
) -> None:
    model, x = Net(there, back).eval(), torch.rand(3, 3, SIDE, SIDE)
    for context in (record(model, ["relu"]), masked(model, {"relu": [0]})):
        with pytest.raises(InputError) as error, context:
            model(x)
        said = f"node 'relu': the first axis of its activations is not the images (rows: {rows}); name another node"
        assert str(error.value) == said
    assert guess_table(model, (3, SIDE, SIDE)) == {} and places(model, (3, SIDE, SIDE))[0].rows == 0


def test_images_at_another_axis() -> None:
    """As in CLIP, whose transformer takes (tokens, images, features)."""
    model = Net(lambda x: x.flatten(2).permute(2, 0, 1), lambda x: x.permute(1, 0, 2)).eval()
    (place,) = places(model, (3, SIDE, SIDE))
    assert (place.axis, place.rows, place.shape) == (2, 1, (6, 64))
    expected = [float((a - b).norm()) for a, b in zip(*(_tokens(model, name) for name in ("clean", "a")), strict=True)]
    for size in (1, 5, 20):
        assert measured(model, size).v_act("relu") == pytest.approx(sum(expected) / 20, rel=1e-6)


def _tokens(model: Net, name: str) -> Tensor:
    with torch.no_grad():
        return model.conv(batches(20)[0].images[name]).relu().double()


def test_rows_that_change_with_the_number_of_images_are_seen_in_the_pass() -> None:
    """Folded where there are few images, and not where there are many."""
    model = Net(lambda x: torch.cat([x, x]) if len(x) < 4 else x).eval()
    with record(model, ["relu"]) as seen:
        model(torch.rand(2, 3, SIDE, SIDE))
        assert seen.rows == {"relu": 2} and seen["relu"].shape == (2, 6, 2, SIDE, SIDE)
        with pytest.raises(InputError, match=r"is not the images \(rows: for 5 images 5\)"):
            model(torch.rand(5, 3, SIDE, SIDE))


def test_a_network_that_takes_one_image_at_a_time() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            if len(x) != 1:
                raise ValueError("one image at a time")
            return self.relu(x).mean((2, 3))

    model, x = Single(), torch.rand(1, 3, SIDE, SIDE)
    with record(model, ["relu"]) as seen:
        model(x)
    assert torch.equal(seen["relu"], x)


def test_training_at_a_folded_node_has_the_gradient_of_the_rows() -> None:
    model, x = Net(FOLDED["views, image by image"][0]), torch.rand(2, 3, SIDE, SIDE)
    with record(model, ["relu"]) as seen:
        model(x)
    (found,) = torch.autograd.grad(seen["relu"][:, 1].square().sum(), model.conv.weight)
    rows = model.there(F.conv2d(x, model.conv.weight, model.conv.bias, padding=1)).relu()
    (expected,) = torch.autograd.grad(rows[:, 1].square().sum(), model.conv.weight)
    torch.testing.assert_close(found, expected)
