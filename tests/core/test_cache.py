"""Tables are made once per identity; what is damaged is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from coprobe.core.cache import Cache
from coprobe.errors import InputError


@pytest.fixture
def made() -> list[str]:
    return []


def look_up(directory: Path | None, made: list[str], kind: str = "table", **identity: Any) -> pd.DataFrame:
    """As everyone does: look whether it is there, else make it and keep it."""
    cache = Cache(directory)
    found = cache.find(kind, identity)
    if found is not None:
        return found
    made.append(kind)
    frame = pd.DataFrame({"x": [0.1, 1 / 3], "name": ["a", "b"]})
    frame.attrs = {"seed": 3, "notes": ["α"]}
    cache.keep(kind, identity, frame)
    return frame


def test_a_table_is_found_again_with_all_that_it_says(tmp_path: Path, made: list[str]) -> None:
    first, again = look_up(tmp_path / "new", made, a=1, b=[2]), look_up(tmp_path / "new", made, b=[2], a=1)
    assert made == ["table"]
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    assert again.attrs == first.attrs == {"seed": 3, "notes": ["α"]}


def test_another_kind_or_identity_is_another_table(tmp_path: Path, made: list[str]) -> None:
    look_up(tmp_path, made, a=1)
    look_up(tmp_path, made, a=2)
    look_up(tmp_path, made, "other", a=1)
    assert made == ["table", "table", "other"]
    assert sorted(path.name.partition("-")[0] for path in tmp_path.iterdir()) == ["other", "table", "table"]


def test_without_a_directory_nothing_is_kept(made: list[str]) -> None:
    look_up(None, made)
    look_up(None, made)
    assert made == ["table"] * 2


def test_a_damaged_table_is_named(tmp_path: Path, made: list[str]) -> None:
    look_up(tmp_path, made)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match=rf"{path.name}: can't be read; delete it"):
        look_up(tmp_path, made)


def test_whether_a_kind_is_kept_at_all(tmp_path: Path, made: list[str]) -> None:
    assert not Cache(None).holds("table") and not Cache(tmp_path / "new").holds("table")
    look_up(tmp_path / "new", made, a=1)
    assert Cache(tmp_path / "new").holds("table") and not Cache(tmp_path / "new").holds("other")
