"""What a hostile file may cost: memory while it is read, time until it is refused."""

from __future__ import annotations

import os

import pytest

from tests.checkpoint.reader.guard import Report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.procs,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="each file is read in a fork"),
]

_MB = 10**6


def test_a_refused_file_takes_at_most_64_mb(reports: dict[str, Report]) -> None:
    over = {
        name: f"{report.growth / _MB:.0f} MB"
        for name, report in reports.items()
        if report.outcome == "refused" and report.growth > 64 * _MB
    }
    assert not over, _lines(over)


def test_a_read_file_takes_at_most_its_tensors_and_a_fifth_and_200_mb(reports: dict[str, Report]) -> None:
    found = [report for report in reports.values() if report.outcome in ("inert", "unreadable")]
    over = {
        report.name: f"{report.growth / _MB:.0f} MB for tensors of {report.nbytes / _MB:.0f} MB"
        for report in found
        if report.growth > 1.2 * report.nbytes + 200 * _MB
    }
    assert not over, _lines(over)
    # Where a second copy of the tensors would be seen.
    assert sum(report.nbytes > 250 * _MB for report in found) >= 3


def test_a_refused_file_of_ten_megabytes_is_not_worked_through(reports: dict[str, Report]) -> None:
    """Half a second is the goal; four times that is left to machines that are busy."""
    over = {
        name: f"{report.seconds:.2f} s"
        for name, report in reports.items()
        if report.outcome == "refused" and report.size <= 10 * _MB and report.seconds > 2
    }
    assert not over, _lines(over)


def test_no_file_takes_more_processor_time_than_the_guard_allows(reports: dict[str, Report]) -> None:
    slow = {name: report.message for name, report in reports.items() if report.outcome == "escaped"}
    assert not slow, _lines(slow)


def _lines(found: dict[str, str]) -> str:
    return "\n".join(f"{name!r}: {fault}" for name, fault in found.items())
