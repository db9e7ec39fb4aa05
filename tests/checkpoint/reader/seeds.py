"""The honest files that the fuzzer starts from."""

from __future__ import annotations

import argparse
import io
import json
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import nn
from torch.storage import TypedStorage

from coprobe.checkpoint.reader import seal
from tests.checkpoint.reader import writers


@dataclass(frozen=True)
class Seed:
    """A file, and the parts that can be changed behind its checksums and lengths.

    Attributes:
        parts: of an archive its members, the pickle first; of a safetensors file its header and its data.
        join: a whole file of such parts, with right checksums and lengths.
    """

    name: str
    data: bytes
    parts: list[bytes]
    join: Callable[[list[bytes]], bytes]


def seeds(folder: Path) -> list[Seed]:
    """Small files of every container and every kind of content; `folder` is for writing them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about its own sparse tensors and its own storages
        return _seeds(folder)


def _seeds(folder: Path) -> list[Seed]:
    torch.manual_seed(0)
    net = nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 2, 3), norm=nn.BatchNorm2d(2)))
    weights = net.state_dict()
    extras = {
        "state_dict": weights,
        "args": argparse.Namespace(lr=0.1, model="resnet18", layers=[1, 2], out=PurePosixPath("a/b")),
        "best": np.float64(0.9),
        "history": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "set": {1, 2.5, (3, 4)},
    }
    sparse = {"s": torch.eye(3).to_sparse(), "c": torch.eye(3).to_sparse_csr(), "w": torch.arange(6.0)[::2]}
    other = {
        "z": torch.view_as_complex(torch.ones(2, 2)).conj(),
        "h": torch.ones(2).bfloat16(),
        "u": torch.tensor([1], dtype=torch.uint16),
    }
    plain = pickle.dumps({"a": [1, 2.5, "x", b"y", None, True, 10**20], "o": OrderedDict(a=(1,)), "x": np.ones(3)}, 4)
    return [
        _of_archive("zip", _saved({"state_dict": weights, "epoch": 3})),
        _of_archive("zip-extras", _saved(extras)),
        _of_archive("zip-module", _saved(net)),
        _of_archive("zip-sparse", _saved(sparse)),
        _of_archive("zip-other", _saved(other)),
        _whole("legacy", _saved_as_once({"state_dict": weights, "epoch": 3})),
        _whole("legacy-extras", _saved_as_once({**extras, "module": net})),
        _whole("plain", plain),
        _of_header("safetensors", save(dict(weights), {"note": "x"})),
        _sealed_archive(folder, weights),
        _sealed_tensors(folder, weights),
    ]


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _saved_as_once(value: Any) -> bytes:
    """As torch saved before version 1.6, but with keys that are numbers and not addresses: mutants must be the same."""
    stored: dict[int, tuple[str, TypedStorage]] = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing: Any) -> Any:
            if not isinstance(thing, TypedStorage):
                return None
            key, _ = stored.setdefault(thing.data_ptr(), (str(len(stored)), thing))
            kind = getattr(torch, thing._pickle_storage_type())
            return ("storage", kind, key, "cpu", thing._size(), None)

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(value)
    held = {
        key: (one._size(), torch.tensor([], dtype=torch.uint8).set_(one.untyped()).numpy().tobytes())
        for key, one in stored.values()
    }
    return writers.legacy(buffer.getvalue()[2:-1], held)


def _whole(name: str, data: bytes) -> Seed:
    return Seed(name, data, [data], lambda parts: parts[0])


def _of_archive(name: str, data: bytes) -> Seed:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    members.sort(key=lambda member: not member[0].endswith("data.pkl"))

    def join(parts: list[bytes]) -> bytes:
        return writers.archive([writers.Member(n, part) for (n, _), part in zip(members, parts, strict=True)])

    return Seed(name, data, [part for _, part in members], join)


def _of_header(name: str, data: bytes) -> Seed:
    end = 8 + struct.unpack_from("<Q", data)[0]
    return Seed(name, data, [data[8:end], data[end:]], lambda parts: writers.safetensors(parts[0], parts[1]))


def _sealed_archive(folder: Path, weights: dict[str, torch.Tensor]) -> Seed:
    path = folder / "sealed.pt"
    torch.save({"state_dict": weights}, path)
    seal.seal_archive(path)
    return _whole("sealed-zip", path.read_bytes())


def _sealed_tensors(folder: Path, weights: dict[str, torch.Tensor]) -> Seed:
    path = folder / "sealed.safetensors"
    header, data = _of_header("", save(dict(weights))).parts
    described = {"__metadata__": {seal.ABOUT: "{}", seal.SEAL: seal.BLANK}, **json.loads(header)}
    path.write_bytes(writers.safetensors(json.dumps(described, separators=(",", ":")).encode(), data))
    seal.seal_safetensors(path)
    return _whole("sealed-safetensors", path.read_bytes())
