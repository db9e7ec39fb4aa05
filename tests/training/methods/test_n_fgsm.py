"""Where N-FGSM's perturbation may go."""

from __future__ import annotations

import pytest
import torch

from coprobe.errors import InputError
from coprobe.training import make_method
from tests.training.methods.small import perturbed
from tests.training.references.common import EPSILON, make, make_batch, state, tiny


def test_it_leaves_the_ball_but_not_the_pixel_range() -> None:
    method, batch = make("n-fgsm"), make_batch()
    images = perturbed(method, tiny(), batch)
    size = (images - batch.images).abs().max()
    assert not method.bounded
    assert 2.5 * EPSILON < size <= 3 * EPSILON
    assert images.min() == 0.0
    assert images.max() == 1.0


def test_it_starts_from_a_clamped_image() -> None:
    method, batch = make("n-fgsm"), make_batch()
    start = method.start(state(method, tiny(), batch))  # type: ignore[attr-defined]
    assert (batch.images + start).min() >= 0.0
    assert (batch.images + start).max() <= 1.0
    assert start.abs().max() > 1.9 * EPSILON
    # Black pixels: half of the noise would leave the range.
    assert 0.25 < (start[0, :, :2] == 0).double().mean() < 0.75


def test_without_noise_it_is_fgsm() -> None:
    batch = make_batch()
    quiet = perturbed(make("n-fgsm", options={"k": 0}), tiny(), batch)
    torch.testing.assert_close(quiet, perturbed(make("fgsm"), tiny(), batch))


@pytest.mark.parametrize("k", ["-1", "nan", "inf"])
def test_impossible_noise_is_refused(k: str) -> None:
    with pytest.raises(InputError, match=r"method n-fgsm: option k (must be at least 0|takes)"):
        make_method("n-fgsm", {"k": k}, epsilon=EPSILON)
