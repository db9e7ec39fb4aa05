"""The paper's published numbers: complete, as typed from the paper, and found by their keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from coprobe.errors import InputError
from coprobe.paper.published import TABLES, published, published_value

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "paper"
PACKAGED = Path(__file__).resolve().parents[2] / "coprobe" / "paper" / "numbers"


@pytest.mark.parametrize(
    ("table", "keys", "number"),
    [
        (1, {"node": "B", "alpha3": 200, "metric": "pgd50"}, 29.65),
        (1, {"node": "A", "alpha3": 400, "metric": "co"}, -1),
        (2, {"dataset": "CIFAR-100", "method": "C.Smooth", "xi_train": 16, "metric": "aa"}, 11.38),
        (2, {"method": "FGSM-MEP", "xi_train": 12, "node": None, "metric": "minutes"}, 92),
        (3, {"method": "Origin", "xi_train": None, "noise": "U(16)", "metric": "clean"}, 80.63),
        (4, {"noise": "Gauss(14)", "metric": "cw"}, 59.74),
        (5, {"method": "Ours-CO", "xi_train": 10, "metric": "aa"}, 19.45),
        (6, {"dataset": "CIFAR-10", "noise": "none", "metric": "pgd50"}, 0.0),
        (7, {"xi_train": 16, "noise": "none", "metric": "clean"}, 70.97),
    ],
)
def test_numbers_read_off_the_paper(table: int, keys: dict[str, str | float | None], number: float) -> None:
    assert published_value(table, **keys) == number


def test_there_are_as_many_numbers_as_the_paper_prints() -> None:
    assert {table: len(published(table)) for table in TABLES} == {1: 120, 2: 90, 3: 6, 4: 32, 5: 160, 6: 20, 7: 32}


def test_what_the_paper_does_not_print() -> None:
    assert published_value(5, method="Ours-CO", xi_train=8, metric="aa") is None
    assert published_value(4, method="Ours-CO", node="B", metric="aa") is None


def test_a_reader_cannot_change_the_numbers() -> None:
    frame = published(3)
    frame["value"] = 0.0
    assert set(published(3)["value"]) == {94.40, 80.63, 89.81, 89.64, 72.84, 72.06}


@pytest.mark.parametrize(
    ("table", "keys", "message"),
    [
        (8, {}, "unknown table '8'; choose from 1, 2, 3, 4, 5, 6, 7"),
        (3, {"metrics": "clean"}, "unknown column of a published table 'metrics'; did you mean metric"),
        (3, {"method": "CO"}, "table 3 has 2 numbers for .*method.*CO"),
    ],
)
def test_questions_without_an_answer(table: int, keys: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        published_value(table, **keys)


@pytest.mark.real
@pytest.mark.parametrize("table", TABLES)
def test_the_packaged_numbers_are_those_extracted_from_the_paper(table: int) -> None:
    extracted = SHARED / f"table{table}.csv"
    if not extracted.exists():
        pytest.skip("no extracted tables beside the repository")
    lines = (PACKAGED / extracted.name).read_text(encoding="utf-8").splitlines()
    assert lines == extracted.read_text(encoding="utf-8").splitlines()
