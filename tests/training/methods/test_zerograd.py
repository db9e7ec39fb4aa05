"""Which entries ZeroGrad and MultiGrad leave out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from coprobe.data import Batch
from coprobe.errors import InputError
from coprobe.training import make_method
from tests.training.methods.small import perturbed
from tests.training.references.common import EPSILON, SHAPE, At, draw_uniform, draws, make

ENTRIES = 2 * 4 * 5


def grey_batch() -> Batch:
    """Six images far from the borders of the range, so that nothing is clamped."""
    return Batch(
        torch.full((6, *SHAPE), 0.5, dtype=torch.float64), torch.zeros(6).long(), torch.arange(6), torch.arange(6)
    )


@pytest.mark.parametrize(("q", "still"), [(0.0, 0), (0.35, 14), (0.5, 20), (1.0, 39)])
def test_a_fraction_of_each_image_stays_where_it_started(q: float, still: int) -> None:
    method = make("zerograd", options={"q": q})
    batch = grey_batch()
    generator = torch.Generator().manual_seed(0)
    # every size once per image, in another order and with another factor each
    sizes = torch.stack([torch.randperm(ENTRIES, generator=generator) + 1.0 for _ in range(6)])
    gradient = (sizes * torch.logspace(-9, 3, 6)[:, None]).view(6, *SHAPE).double()
    start = torch.full_like(gradient, EPSILON / 2)
    delta = method.step(start, gradient, batch) - batch.images  # type: ignore[attr-defined]
    unmoved = ((delta - start).abs() < 1e-12).flatten(1)
    assert unmoved.sum(1).tolist() == [still] * 6
    assert torch.equal(unmoved, sizes <= still)
    moved = delta.flatten(1)[~unmoved]
    torch.testing.assert_close(moved, torch.full_like(moved, EPSILON))


@pytest.mark.parametrize("q", [-0.1, 1.1, float("nan")])
def test_a_quantile_outside_0_to_1_is_refused(q: float) -> None:
    with pytest.raises(InputError, match=r"method zerograd: option q (must be at least 0 and at most 1|takes)"):
        make_method("zerograd", {"q": q}, epsilon=EPSILON)


class HalfFolded(nn.Module):
    """Two logits ± s: s rises with every entry of channel 0, and with the distance from grey of those of channel 1."""

    def forward(self, x: Tensor) -> Tensor:
        s = x[:, 0].flatten(1).sum(1) + (x[:, 1] - 0.5).abs().flatten(1).sum(1)
        return torch.stack([s, -s], 1)


@pytest.mark.parametrize("samples", [1, 2, 3, 5])
def test_multigrad_moves_only_where_all_starts_agree(samples: int) -> None:
    method = make("multigrad", options={"samples": samples})
    batch = grey_batch()
    generator = draws(At())
    above = torch.stack([draw_uniform(generator, batch)[:, 1] > 0 for _ in range(samples)])
    delta = perturbed(method, HalfFolded(), batch) - batch.images
    # The label is 0, so the loss falls with s: up is against the gradient.
    torch.testing.assert_close(delta[:, 0], torch.full_like(delta[:, 0], -EPSILON))
    expected = torch.where(above.all(0), -EPSILON, torch.where(above.any(0), 0.0, EPSILON))
    torch.testing.assert_close(delta[:, 1], expected.double())
    assert bool((delta[:, 1] == 0).any()) == (samples > 1)


def test_multigrad_needs_a_sample() -> None:
    with pytest.raises(InputError, match="method multigrad: option samples must be at least 1, not 0"):
        make_method("multigrad", {"samples": 0}, epsilon=EPSILON)
