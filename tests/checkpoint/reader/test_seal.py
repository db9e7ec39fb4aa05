"""The seal of our own files: torch and safetensors read them as ever, and no changed bit goes unseen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from coprobe.checkpoint.reader import open_checkpoint, seal
from coprobe.errors import InputError

WEIGHTS = {"a": torch.arange(3.0), "b": torch.tensor([[1, 2]])}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "a.pt"
    torch.save(WEIGHTS, path)
    seal.seal_archive(path)
    return path


@pytest.fixture
def tensors(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    path.write_bytes(save(WEIGHTS, {seal.ABOUT: json.dumps({"x": 1}), seal.SEAL: seal.BLANK}))
    seal.seal_safetensors(path)
    return path


@pytest.mark.parametrize("kind", ["archive", "tensors"])
def test_sealed_files_are_read_by_everyone(kind: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(kind)
    with open_checkpoint(path) as contents:
        assert contents.sealed and contents.notes == ()
        read = contents.tensors(contents.payload)
    theirs = torch.load(path, weights_only=True) if kind == "archive" else load_file(path)
    for name, tensor in WEIGHTS.items():
        assert torch.equal(read[name], tensor) and torch.equal(theirs[name], tensor)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["archive", "tensors"])
def test_every_changed_bit_is_seen(kind: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(kind)
    data = path.read_bytes()
    with open_checkpoint(path) as contents:
        assert contents.sealed
    unseen = []
    for bit in range(0, 8 * len(data), 7):  # one bit or two of every byte, each time another
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            with open_checkpoint(path) as contents:
                if contents.sealed or (seal.ABOUT not in contents.metadata and kind == "tensors"):
                    unseen.append(bit)
        except InputError:
            pass
    assert unseen == []


def test_an_archive_with_a_comment_of_someone_else_is_refused(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(data[:-2] + b"\x02\x00hi")
    with pytest.raises(InputError, match="doesn't fit its seal"), open_checkpoint(tmp_path / "a.pt"):
        pass
