"""Result files: stale is missing, damaged is said, half-written is missing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from coprobe.core import results as store

FRAME = pd.DataFrame(
    {
        "source": ["", "cs-8"],
        "noise": ["none", "U(16)"],
        "correct": [3, 4],
        "value": [0.1 + 0.2, np.nextafter(1 / 3, 1)],
        "norm": [5e-324, np.nan],
    }
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    store.write(tmp_path / "stats" / "a-1.5.csv", FRAME, "key", {"seconds": 1.5})
    return tmp_path / "stats" / "a-1.5.csv"


def test_what_was_written_is_read_exactly(path: Path) -> None:
    pd.testing.assert_frame_equal(
        store.read(path, "key").fillna({"source": ""}), FRAME, check_exact=True, check_dtype=False
    )
    random = pd.DataFrame({"x": np.random.default_rng(0).standard_normal(2000) * 1e-7})
    store.write(path, random, "key", {})
    assert (store.read(path, "key")["x"] == random["x"]).all()


def test_a_file_can_be_read_and_written_again_byte_for_byte(path: Path) -> None:
    before = path.read_bytes()
    store.write(path, store.read(path, "key"), "key", {})
    assert path.read_bytes() == before and b"\r" not in before


def test_it_says_what_it_is_of(path: Path) -> None:
    assert store.provenance_of(path).name == "a-1.5.provenance.json"
    facts = json.loads(store.provenance_of(path).read_text())
    assert (facts["key"], facts["seconds"], len(facts["sha256"])) == ("key", 1.5, 64)
    assert sorted(file.name for file in path.parent.iterdir()) == ["a-1.5.csv", "a-1.5.provenance.json"]


def test_no_file_or_half_a_pair_is_no_result(path: Path, tmp_path: Path) -> None:
    assert store.read(tmp_path / "none.csv", "key") is None
    content = path.read_bytes()
    path.unlink()
    assert store.read(path, "key") is None
    path.write_bytes(content)
    assert store.read(path, "key") is not None
    store.provenance_of(path).unlink()
    assert store.read(path, "key") is None


def test_a_result_of_something_else_is_none(path: Path) -> None:
    assert store.read(path, "other") is None
    path.write_text("damaged as well")
    assert store.read(path, "other") is None


@pytest.mark.parametrize("damage", ["cut", "changed", "facts", "list"])
def test_damage_is_named_with_its_remedy(path: Path, damage: str) -> None:
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-2])
    elif damage == "changed":
        path.write_bytes(path.read_bytes().replace(b"3", b"4"))
    else:
        store.provenance_of(path).write_text("{" if damage == "facts" else "[]")
    with pytest.raises(store.DamagedError, match=r"a-1\.5\.csv: damaged result; 'coprobe paper --repair' makes it"):
        store.read(path, "key")


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_between_two_renames_leaves_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch, renames: int) -> None:
    """What is there after the first `renames` of the files took their places: the old result, or none; never damage."""
    done = []

    def replace(self: Path, target: Path) -> None:
        if target.name.startswith("."):  # a file within the temporary one
            os.replace(self, target)  # noqa: PTH105
            return
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(target)
        os.replace(self, target)  # noqa: PTH105

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        store.write(path, FRAME.head(1), "key", {})
    assert len(done) == renames and store.read(path, "key") is None


def test_a_full_disk_leaves_the_old_result(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        store.write(path, FRAME.head(1), "key", {})
    assert path.read_bytes() == before and store.read(path, "key") is not None
    assert len(list(path.parent.iterdir())) == 2


def test_keys_tell_settings_and_formats_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    key = store.key_of(kind="accuracy", xi=16.0)
    assert key == store.key_of(xi=16.0, kind="accuracy") and len(key) == 16 and int(key, 16) >= 0
    assert key != store.key_of(kind="accuracy", xi=12.0)
    monkeypatch.setattr(store, "FORMAT", "coprobe-results/2")
    assert key != store.key_of(kind="accuracy", xi=16.0)
