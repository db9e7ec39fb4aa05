"""Honest files: tensors equal torch's bit by bit, and everything beside them is there as plain data."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import enum
import functools
import pathlib
import pickle
import threading
import uuid
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from coprobe.checkpoint.reader import Contents, OpaqueObject, TensorSpec, UnreadableTensor, open_checkpoint
from coprobe.errors import InputError
from tests.checkpoint.reader import writers


class Colour(enum.Enum):
    RED = 1


@dataclass
class Settings:
    rate: float = 0.1


class Mapping(dict):  # type: ignore[type-arg]
    pass


Pair = collections.namedtuple("Pair", "left right")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("hidden", torch.ones(2), persistent=False)
        self.settings = Settings()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


def save(value: Any, path: Path, legacy: bool = False) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def stored_in(value: Any, path: str = "") -> dict[str, TensorSpec]:
    """Every tensor in a payload, by the way to it."""
    if isinstance(value, TensorSpec):
        return {path: value}
    found: dict[str, TensorSpec] = {}
    parts: Any = {}
    if isinstance(value, dict):
        parts = value
    elif isinstance(value, list | tuple):
        parts = dict(enumerate(value))
    elif isinstance(value, OpaqueObject):
        parts = {"state": value.state, "items": value.items, "args": value.args}
    for key, part in parts.items():
        found |= stored_in(part, f"{path}/{key}")
    return found


def contents_of(path: Path) -> tuple[Contents, dict[str, Tensor]]:
    with open_checkpoint(path) as contents:
        return contents, contents.tensors(stored_in(contents.payload))


def bits(tensor: Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    """Type, shape and bytes."""
    dense = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return dense.dtype, dense.shape, dense.flatten().view(torch.uint8).numpy().tobytes()


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=generator)
    complex_ = torch.randn(3, generator=generator, dtype=torch.complex64)
    kinds = [
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.int8,
        torch.uint8,
        torch.int16,
        torch.int32,
        torch.int64,
    ]
    return {
        "float32": base,
        **{str(kind): (base * 10).to(kind) for kind in kinds},
        "bool": base > 0,
        "complex": complex_,
        "transposed": base.t(),
        "sliced": base[1:3, ::2],
        "shared": base[2],
        "conjugated": complex_.conj(),
        "negated": torch._neg_view(base),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "not finite": torch.tensor([float("nan"), float("inf"), -0.0]),
        "parameter": nn.Parameter(base.clone()),
        "gradient": base.clone().requires_grad_(),
    }


NEW = {
    **{str(kind): torch.arange(5).to(kind) for kind in (torch.uint16, torch.uint32, torch.uint64)},
    **{str(kind): torch.randn(5).to(kind) for kind in (torch.float8_e4m3fn, torch.float8_e5m2)},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_tensors_have_the_same_bits_as_in_torch(tmp_path: Path, legacy: bool) -> None:
    expected = tensors() | ({} if legacy else NEW)  # torch itself can't read the new types from legacy files
    contents, read = contents_of(save(expected, tmp_path / "a.pt", legacy))
    assert contents.container == ("legacy pickle" if legacy else "zip")
    assert {name: bits(tensor) for name, tensor in read.items()} == {f"/{n}": bits(t) for n, t in expected.items()}
    assert read["/shared"].untyped_storage().data_ptr() == read["/float32"].untyped_storage().data_ptr()


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    path = save(
        {"small": torch.ones(2), "view": torch.arange(1000)[500:502], "large": torch.zeros(10**6)}, tmp_path / "a"
    )
    with open_checkpoint(path) as contents:
        read = contents.tensors({name: contents.payload[name] for name in ("small", "view")})
    assert read["view"].tolist() == [500, 501]
    assert sum(tensor.untyped_storage().nbytes() for tensor in read.values()) < 100


EXTRAS: dict[str, tuple[Any, Any]] = {
    "None": (None, None),
    "large integer": (10**30, 10**30),
    "negative": (-3, -3),
    "float": (0.1, 0.1),
    "complex": (3 + 4j, 3 + 4j),
    "text": ("grün\n", "grün\n"),
    "surrogate": ("\udcff", "\udcff"),
    "bytes": (b"\x00\xff", b"\x00\xff"),
    "bytearray": (bytearray(b"ab"), b"ab"),
    "set": ({1, 2}, {1, 2}),
    "frozenset": (frozenset("a"), frozenset("a")),
    "tuple key": ({(1, "a"): 2}, {(1, "a"): 2}),
    "defaultdict": (collections.defaultdict(list, {"a": [1]}), {"a": [1]}),
    "Counter": (collections.Counter("aab"), {"a": 2, "b": 1}),
    "OrderedDict": (collections.OrderedDict(a=1), {"a": 1}),
    "deque": (collections.deque([1, 2]), [1, 2]),
    "torch.Size": (torch.Size([2, 3]), (2, 3)),
    "device": (torch.device("cpu"), "cpu"),
    "path": (pathlib.PurePosixPath("/a/b.pt"), "/a/b.pt"),
    "numpy float": (np.float64(0.25), 0.25),
    "numpy integer": (np.int32(7), 7),
    "numpy bool": (np.bool_(True), True),
    "numpy text": (np.str_("ab"), "ab"),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_extras_become_plain_data(tmp_path: Path, legacy: bool) -> None:
    contents, _ = contents_of(save({name: value for name, (value, _) in EXTRAS.items()}, tmp_path / "a.pt", legacy))
    for name, (_, expected) in EXTRAS.items():
        assert contents.payload[name] == expected and type(contents.payload[name]) is type(expected), name
    assert not any("names code" in note for note in contents.notes)


OBJECTS: dict[str, tuple[Any, str]] = {
    "Namespace": (argparse.Namespace(lr=0.1), "argparse.Namespace"),
    "dataclass": (Settings(0.5), f"{__name__}.Settings"),
    "enum": (Colour.RED, f"{__name__}.Colour"),
    "named tuple": (Pair(1, 2), f"{__name__}.Pair"),
    "date": (datetime.datetime(2026, 1, 2), "datetime.datetime"),
    "Decimal": (decimal.Decimal("1.5"), "decimal.Decimal"),
    "partial": (functools.partial(max, 1), "functools.partial"),
    "slice": (slice(1, 2), "builtins.slice"),
    "UUID": (uuid.UUID(int=5), "uuid.UUID"),
    "dict subclass": (Mapping(a=1), f"{__name__}.Mapping"),
    "loss": (nn.CrossEntropyLoss(), "torch.nn.modules.loss.CrossEntropyLoss"),
}


def test_objects_of_other_classes_are_labels_with_what_they_held(tmp_path: Path) -> None:
    weights = {"w": torch.ones(3)}
    objects = {name: value for name, (value, _) in OBJECTS.items()}
    contents, read = contents_of(save({"state_dict": weights, **objects}, tmp_path / "a.pt"))
    assert torch.equal(read["/state_dict/w"], weights["w"])
    for name, (_, label) in OBJECTS.items():
        found = contents.payload[name]
        assert isinstance(found, OpaqueObject), name
        assert found.name.replace("__builtin__", "builtins") == label
    assert contents.payload["Namespace"].attributes == {"lr": 0.1}
    assert contents.payload["dataclass"].attributes == {"rate": 0.5}
    assert contents.payload["named tuple"].args == (1, 2)
    assert contents.payload["dict subclass"].items == {"a": 1}
    assert len([note for note in contents.notes if "names code, which is never run" in note]) == 1


def test_optimizer_and_random_state(tmp_path: Path) -> None:
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "torch": torch.get_rng_state(), "numpy": np.random.get_state()}  # noqa: NPY002 (what checkpoints hold)
    contents, read = contents_of(save(state, tmp_path / "a.pt"))
    assert bits(read["/torch"]) == bits(state["torch"])
    assert read["/numpy/1"].tolist() == state["numpy"][1].tolist()
    assert contents.payload["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999)
    averages = optimizer.state_dict()["state"][0]["exp_avg"]
    assert bits(read["/optimizer/state/0/exp_avg"]) == bits(averages)


@pytest.mark.parametrize(
    "array", [np.arange(6.0).reshape(2, 3), np.arange(6).reshape(2, 3).T, np.array(2, ">i4"), np.eye(2) > 0]
)
@pytest.mark.parametrize("protocol", range(6))
def test_arrays(tmp_path: Path, array: Any, protocol: int) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"w": array}, protocol))
    if protocol < 2:
        with pytest.raises(InputError, match=r"is a text file|is no checkpoint"):
            contents_of(tmp_path / "a.pkl")
        return
    contents, read = contents_of(tmp_path / "a.pkl")
    assert contents.container == "plain pickle"
    assert read["/w"].tolist() == array.tolist() and read["/w"].shape == array.shape


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_whole_module_is_there_with_its_tensors(tmp_path: Path, legacy: bool) -> None:
    model = Net()
    contents, _ = contents_of(save(model, tmp_path / "a.pt", legacy))
    assert isinstance(contents.payload, OpaqueObject) and contents.payload.name == f"{__name__}.Net"
    conv = contents.payload.attributes["_modules"]["conv"]
    with open_checkpoint(tmp_path / "a.pt") as again:
        conv = again.payload.attributes["_modules"]["conv"]
        read = again.tensors(conv.attributes["_parameters"])
    assert bits(read["weight"]) == bits(model.conv.weight)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: torch.eye(3).to_sparse(), "is sparse"),
        (lambda: torch.eye(3).to_sparse_csr(), "is sparse"),
        (lambda: torch.ones(3, device="meta"), "holds no numbers"),
        (lambda: torch.ones(1).expand(10), "has 10 elements where 1 are stored"),
    ],
    ids=["coo", "csr", "meta", "expanded"],
)
def test_tensors_that_are_not_read_say_why(tmp_path: Path, make: Callable[[], Tensor], reason: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = make()
        contents, read = contents_of(save({"odd": tensor, "w": torch.ones(2)}, tmp_path / "a.pt"))
    odd = contents.payload["odd"]
    assert isinstance(odd, UnreadableTensor) and odd.reason.startswith(reason)
    assert list(read) == ["/w"]


def test_safetensors(tmp_path: Path) -> None:
    expected = {name: tensor.detach().contiguous().clone() for name, tensor in (tensors() | NEW).items()}
    expected = {name: tensor for name, tensor in expected.items() if not tensor.is_conj() and not tensor.is_neg()}
    save_file(expected, tmp_path / "a.bin", {"who": "me"})
    contents, read = contents_of(tmp_path / "a.bin")
    assert (contents.container, contents.metadata) == ("safetensors", {"who": "me"})
    assert {name: bits(tensor) for name, tensor in read.items()} == {f"/{n}": bits(t) for n, t in expected.items()}
    assert contents.notes == ("its format has no checksums, so its content can't be verified",)


def test_numbers_in_the_other_byte_order(tmp_path: Path) -> None:
    expected = {
        "f": torch.randn(3),
        "h": torch.arange(4, dtype=torch.int16),
        "c": torch.randn(2, dtype=torch.complex64),
    }
    members = []
    with zipfile.ZipFile(save(expected, tmp_path / "a.pt")) as archive:
        for name in archive.namelist():
            data = archive.read(name)
            if name.endswith("byteorder"):
                data = b"big"
            if "/data/" in name:
                width = (4, 2, 4)[int(name.rpartition("/")[2])]  # of a complex number, each half by itself
                data = np.frombuffer(data, f"u{width}").byteswap().tobytes()
            members.append(writers.Member(name, data))
    (tmp_path / "big.pt").write_bytes(writers.archive(members))
    _, read = contents_of(tmp_path / "big.pt")
    assert {name: bits(tensor) for name, tensor in read.items()} == {f"/{n}": bits(t) for n, t in expected.items()}


def test_a_file_saved_without_checksums_says_so(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        save(tensors(), tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    contents, read = contents_of(tmp_path / "a.pt")
    assert contents.notes == ("it was saved without checksums, so its content can't be verified",)
    assert bits(read["/float32"]) == bits(tensors()["float32"])


@pytest.mark.parametrize("change", ["shortened", "rewritten"])
def test_a_file_that_changes_while_it_is_open(tmp_path: Path, change: str) -> None:
    path = save({"w": torch.ones(300_000)}, tmp_path / "a.pt")
    with open_checkpoint(path) as contents:
        if change == "shortened":
            with path.open("rb+") as file:
                file.truncate(2000)
        else:
            save({"w": torch.zeros(300_000)}, path)
        with pytest.raises(InputError, match="changed while it was read"):
            contents.tensors(contents.payload)


def test_a_file_that_is_replaced_meanwhile_gives_the_old_content(tmp_path: Path) -> None:
    path = save({"w": torch.ones(1000)}, tmp_path / "a.pt")
    with open_checkpoint(path) as contents:
        save({"w": torch.zeros(1000)}, tmp_path / "b.pt").replace(path)
        assert contents.tensors(contents.payload)["w"].sum() == 1000


def test_several_threads_read_at_once(tmp_path: Path) -> None:
    path = save(tensors(), tmp_path / "a.pt")
    results: list[dict[str, Tensor]] = []
    threads = [threading.Thread(target=lambda: results.append(contents_of(path)[1])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({bits(read["/float32"])[2] for read in results}) == 1 and len(results) == 4


def test_loaded_gives_our_own_files_whole_and_refuses_others(tmp_path: Path) -> None:
    state = {"a": [torch.ones(2), (1, "x", None)], "b": {3: torch.zeros(1)}}
    with open_checkpoint(save(state, tmp_path / "a.pt")) as contents:
        read = contents.loaded()
    assert read["a"][1] == (1, "x", None) and read["a"][0].tolist() == [1, 1] and read["b"][3].tolist() == [0]
    with (
        pytest.raises(InputError, match=r"b\.pt: holds a .*Settings where plain values belong"),
        open_checkpoint(save({"a": Settings()}, tmp_path / "b.pt")) as contents,
    ):
        contents.loaded()
