"""Which file a folder stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from coprobe.checkpoint import find_file
from coprobe.errors import InputError

HELD = ("checkpoint.pt", "model.safetensors", "pytorch_model.bin")


def test_ours_comes_first_then_those_of_hugging_face(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    for name in reversed(HELD):
        (tmp_path / name).write_bytes(b"x")
        assert find_file(tmp_path) == tmp_path / name


def test_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a directory without"):
        find_file(tmp_path)
    (tmp_path / "pytorch_model.bin.index.json").write_text("{}")
    with pytest.raises(InputError, match=r"is a folder of shards \(pytorch_model.bin.index.json\); merge them"):
        find_file(tmp_path)


@pytest.mark.parametrize("name", ["absent", "a\0b", "n" * 5000])
def test_names_without_a_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        find_file(tmp_path / name)
