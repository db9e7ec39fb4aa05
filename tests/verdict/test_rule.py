from __future__ import annotations

import pytest

from coprobe.verdict.rule import collapse_epoch, converged, verdict_of


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
def test_robustness_is_lost(accuracy: list[float], epoch: int | None) -> None:
    assert collapse_epoch([{"clean": 0.9, "fgsm": 0.4, "pgd10": pgd} for pgd in accuracy]) == epoch


@pytest.mark.parametrize(
    ("rows", "epoch"),
    [
        # (clean, FGSM, PGD-10): a collapse without robustness before
        ([(0.2, 0.1, 0.1), (0.3, 0.2, 0.1), (0.5, 0.4, 0.0), (0.5, 0.5, 0.0)], 3),
        ([(0.3, 0.2, 0.05), (0.3, 0.2, 0.05), (0.3, 0.2, 0.05)], 1),
        ([(0.3, 0.2, 0.1), (0.5, 0.4, 0.0), (0.5, 0.3, 0.29), (0.5, 0.4, 0.0)], 4),  # came back in between
        ([(0.5, 0.19, 0.09)] * 4, None),  # more than half of them hold
        ([(0.5, 0.3, 0.15)] * 4, None),
        ([(0.9, 0.4, 0.0)] * 4, None),  # as after clean training: FGSM finds more than half of the images
        # lost first, blinded after it
        ([(0.5, 0.4, 0.3), (0.5, 0.15, 0.1), (0.5, 0.4, 0.1), (0.5, 0.6, 0.2)], 2),
    ],
)
def test_a_collapse_needs_no_robustness_before(rows: list[tuple[float, float, float]], epoch: int | None) -> None:
    assert collapse_epoch([dict(zip(("clean", "fgsm", "pgd10"), row, strict=True)) for row in rows]) == epoch


def test_guessing_is_no_convergence() -> None:
    assert not converged(0.15, 10)
    assert converged(0.151, 10)
    assert not converged(0.0, 2)
    assert converged(0.016, 100)


@pytest.mark.parametrize(
    ("clean", "fgsm", "pgd", "classes", "verdict"),
    [
        (0.10, 0.10, 0.10, 10, "did not converge"),
        (0.15, 0.15, 0.00, 10, "did not converge"),
        (0.16, 0.16, 0.16, 10, "stable"),
        (0.85, 0.90, 0.00, 10, "CO-affected"),
        (0.85, 0.50, 0.24, 10, "CO-affected"),
        (0.85, 0.50, 0.25, 10, "not robust"),  # not below half, but below two thirds
        (0.85, 0.45, 0.30, 10, "stable"),
        (0.85, 0.46, 0.30, 10, "not robust"),
        (0.85, 0.15, 0.06, 10, "not robust"),  # less than 10 points below
        (0.80, 0.45, 0.40, 10, "stable"),
        (0.80, 0.25, 0.20, 10, "stable"),
        (0.80, 0.20, 0.19, 10, "not robust"),
        (0.94, 0.09, 0.00, 10, "not robust"),
        (0.74, 0.74, 0.74, 2, "did not converge"),
    ],
)
def test_verdicts(clean: float, fgsm: float, pgd: float, classes: int, verdict: str) -> None:
    assert verdict_of(clean, fgsm, pgd, classes) == verdict
