"""Everything that any coprobe has written keeps loading: files of each format, written here byte by byte."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import coprobe
from coprobe.models import build
from tests.checkpoint.reader import opcodes as op
from tests.checkpoint.reader import writers

ARGS = {"width": 1, "num_classes": 2, "in_channels": 1}
ABOUT = {
    "coprobe": "0.1.0",
    "arch": "resnet18",
    "arch_args": ARGS,
    "preprocess": {"mean": [0.25], "std": [0.5]},
    "recipe": {"data": "digits", "eps_train": 8.0},
    "metrics": {"epoch": 3, "selected": "last epoch"},
    "image_shape": [1, 32, 32],
}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(build("resnet18", **ARGS).state_dict())


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def kind(tensor: Tensor) -> tuple[str, str]:
    """The element type, as a pickle names its storage and as a safetensors header does."""
    return ("torch.FloatStorage", "F32") if tensor.is_floating_point() else ("torch.LongStorage", "I64")


def pickled(value: Any) -> bytes:
    """The opcodes of a plain value."""
    if isinstance(value, dict):
        return op.named(**{key: pickled(item) for key, item in value.items()})
    if isinstance(value, list):
        return op.sequence(*map(pickled, value))
    return {str: op.text, float: op.real, int: op.number}[type(value)](value)


def zipped(version: str, weights: dict[str, Tensor]) -> bytes:
    """What torch.save has made of a description with a state dict."""
    tensors = {}
    for key, (name, tensor) in enumerate(weights.items()):
        stored = op.storage(op.text(str(key)), tensor.numel(), kind=kind(tensor)[0])
        tensors[name] = op.tensor(stored, op.sizes(tensor.shape), op.sizes(tensor.stride()))
    entries = {key: pickled(value) for key, value in {"format": version, **ABOUT}.items()}
    pickle = op.pickled(op.named(**entries, state_dict=op.named(**tensors)))
    return writers.archive(
        writers.members(pickle, {str(key): raw(tensor) for key, tensor in enumerate(weights.values())}),
        end=writers.End(comment_length=79 if version == "coprobe/2" else 0),
    )


def in_safetensors(metadata: dict[str, str], weights: dict[str, Tensor]) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata}
    data = b""
    for name, tensor in weights.items():
        first, data = len(data), data + raw(tensor)
        header[name] = writers.described(first, len(data), list(tensor.shape), kind(tensor)[1])
    return writers.safetensors(json.dumps(header, separators=(",", ":")).encode(), data)


def sealed_zip(weights: dict[str, Tensor]) -> bytes:
    """The SHA-256 of all that stands before it is the archive's comment."""
    whole = zipped("coprobe/2", weights)
    return whole + b"coprobe sha256 " + hashlib.sha256(whole).hexdigest().encode()


def sealed_safetensors(weights: dict[str, Tensor]) -> bytes:
    """The SHA-256 of the file with zeros in its place is an entry of the metadata."""
    about = json.dumps({"format": "coprobe/2", **ABOUT})
    blank = in_safetensors({"coprobe-about": about, "coprobe-seal": "0" * 64}, weights)
    return blank.replace(b"0" * 64, hashlib.sha256(blank).hexdigest().encode())


FORMATS: dict[str, tuple[str, Callable[[dict[str, Tensor]], bytes]]] = {
    "coprobe/1 zip": (".pt", lambda weights: zipped("coprobe/1", weights)),
    "coprobe/1 safetensors": (
        ".safetensors",
        lambda weights: in_safetensors({"coprobe": json.dumps({"format": "coprobe/1", **ABOUT})}, weights),
    ),
    "coprobe/2 zip": (".pt", sealed_zip),
    "coprobe/2 safetensors": (".safetensors", sealed_safetensors),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_ours_is_read_whole(name: str, weights: dict[str, Tensor], tmp_path: Path) -> None:
    suffix, write = FORMATS[name]
    (tmp_path / f"c{suffix}").write_bytes(write(weights))
    read = coprobe.load(tmp_path / f"c{suffix}")
    assert (read.layout, read.evidence, read.normalised_by) == (
        name.split(maxsplit=1)[0],
        "named in the file",
        "the file",
    )
    assert (read.arch, read.arch_args, read.image_shape, read.classes) == ("resnet18", ARGS, (1, 32, 32), ())
    assert (read.model.mean, read.model.std) == ((0.25,), (0.5,))
    assert (read.recipe, read.metrics, read.stage) == (ABOUT["recipe"], ABOUT["metrics"], "last epoch (3)")
    state = read.model.network.state_dict()
    assert list(state) == list(weights)
    assert all(torch.equal(state[key], tensor) for key, tensor in weights.items())
    assert ("can't be verified" in " ".join(read.notes)) is (name == "coprobe/1 safetensors")


def test_a_run_directory_of_then_stands_for_its_last_checkpoint(weights: dict[str, Tensor], tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text('{"coprobe": "0.1.0", "data": "digits"}')
    (tmp_path / "history.csv").write_text("epoch,loss\n1,2.0\n")
    (tmp_path / "checkpoint.pt").write_bytes(zipped("coprobe/1", weights))
    (tmp_path / "best.pt").write_bytes(sealed_zip(weights))
    assert coprobe.load(tmp_path).path == tmp_path / "checkpoint.pt"
    assert coprobe.load(tmp_path).digest == coprobe.load(tmp_path / "best.pt").digest
