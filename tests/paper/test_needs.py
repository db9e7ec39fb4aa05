"""Needs, and what becomes of several at one place."""

from __future__ import annotations

from coprobe.paper.needs import KINDS, Need, merged


def test_a_need_knows_its_file() -> None:
    assert Need("mep-12", "accuracy", "best", 12).file == "accuracy-best-12.csv"
    assert Need("mep-12", "channels", xi=12.5).file == "channels-last-12.5.csv"
    assert len({Need("mep-12", kind).file for kind in KINDS}) == len(KINDS)


def test_the_same_of_another_checkpoint() -> None:
    need = Need("mep-12", "accuracy", "best", 12, ("fgsm",), ("U(16)",))
    assert need.on("last") == Need("mep-12", "accuracy", "last", 12, ("fgsm",), ("U(16)",))


def test_needs_at_one_place_become_one_with_all_that_they_ask_for() -> None:
    needs = [
        Need("mep-12", "accuracy", attacks=("fgsm", "cw"), noises=("none",)),
        Need("mep-12", "accuracy", attacks=("pgd50", "fgsm"), noises=("none", "U(16)")),
        Need("mep-12", "transfer", attacks=("fgsm",), sources=("cs-8",)),
        Need("mep-12", "transfer", attacks=("fgsm",), sources=("cs-12", "cs-8")),
    ]
    assert merged(needs) == [
        Need("mep-12", "accuracy", attacks=("fgsm", "cw", "pgd50"), noises=("none", "U(16)")),
        Need("mep-12", "transfer", attacks=("fgsm",), sources=("cs-8", "cs-12")),
    ]


def test_other_places_stay_apart() -> None:
    needs = [
        Need("mep-12", "accuracy"),
        Need("mep-12", "channels"),
        Need("mep-12", "accuracy", "best"),
        Need("mep-12", "accuracy", xi=12),
        Need("mep-16", "accuracy"),
    ]
    assert merged(needs) == needs
    assert len({need.place for need in needs}) == len(needs)


def test_whole_numbers_and_decimals_are_one_budget() -> None:
    assert len(merged([Need("mep-12", "accuracy", xi=16), Need("mep-12", "accuracy", xi=16.0)])) == 1
