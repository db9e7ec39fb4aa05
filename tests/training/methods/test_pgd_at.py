from __future__ import annotations

import pytest

from coprobe.errors import InputError
from tests.training.methods.small import perturbed
from tests.training.references.common import EPSILON, make, make_batch, tiny


def test_iterations_and_step_size_limit_how_far_it_goes() -> None:
    assert make("pgd-at").alpha == 2 / 255  # whatever ε
    batch, model = make_batch(), tiny()
    method = make("pgd-at", options={"iterations": 2}, step_size=0.001)
    still = make("pgd-at", options={"iterations": 1}, step_size=0.0)
    start = perturbed(still, model, batch)
    moved = (perturbed(method, model, batch) - start).abs()
    assert 0.0019 < moved.max() < 0.0020001
    assert (start - batch.images).abs().max() > 0.9 * EPSILON


def test_no_step_is_refused() -> None:
    with pytest.raises(InputError, match="method pgd-at: option iterations must be at least 1, not 0"):
        make("pgd-at", options={"iterations": 0})
