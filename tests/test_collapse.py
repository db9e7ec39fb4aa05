from __future__ import annotations

import pytest

from coprobe.collapse import collapse_epoch, converged


@pytest.mark.parametrize(
    ("accuracy", "epoch"),
    [
        ([0.4] * 5, None),
        ([0.4, 0.4, 0.1, 0.1, 0.1, 0.4], 3),
        ([0.4, 0.4, 0.1, 0.1, 0.4, 0.4], None),  # came back within 3 epochs
        ([0.4, 0.4, 0.1], 3),  # to the end
        ([0.4, 0.3, 0.2, 0.2, 0.2], None),  # half is not below half
        ([0.1, 0.1, 0.0, 0.0, 0.0], None),  # nothing to lose
        ([0.4, 0.1, 0.4, 0.0, 0.0, 0.0], 4),
        ([0.4], None),
        ([], None),
    ],
)
def test_collapse_epoch(accuracy: list[float], epoch: int | None) -> None:
    assert collapse_epoch(accuracy) == epoch


def test_guessing_is_no_convergence() -> None:
    assert not converged(0.15, 10)
    assert converged(0.151, 10)
    assert not converged(0.0, 2)
    assert converged(0.016, 100)
