"""Files that are no checkpoint, or half of one, under the names that checkpoints have."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator

from tests.checkpoint.reader import opcodes as op
from tests.checkpoint.reader import writers
from tests.checkpoint.reader.corpus import Entry, Trap, constant
from tests.checkpoint.reader.writers import Member, archive

_SUFFIXES = (".pt", ".pth", ".ckpt", ".tar", ".bin", ".pkl", ".safetensors")
_PICKLE = op.pickled(op.named(w=op.vector()))
_CODE = op.pickled(op.call("posix.system", op.text("id")))


def _legacy_tar(trap: Trap) -> bytes:
    """The container of torch before 0.2: pickles in a tar archive."""
    code = op.pickled(op.call("posix.system", op.text(trap.command)))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in {
            "storages": op.pickled(op.number(0)) + op.pickled(op.EMPTY_LIST),
            "tensors": op.pickled(op.number(0)),
            "pickle": code,
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _npy(dtype: str, data: bytes) -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': (1,), }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + data


def _torchscript() -> bytes:
    more = [
        Member("archive/constants.pkl", op.pickled(op.EMPTY_TUPLE)),
        Member("archive/code/__torch__.py", b"class M(Module):\n  pass\n"),
    ]
    return archive([*writers.members(_PICKLE), *more])


def _exported() -> bytes:
    return archive(
        [
            Member("archive/archive_format", b"pt2"),
            Member("archive/models/model.json", b"{}"),
            Member("archive/data/weights/model.pt", archive(writers.members(_PICKLE))),
            Member("archive/version", b"6"),
        ]
    )


_JOBLIB = (
    op.pickled(op.call("joblib.numpy_pickle.NumpyArrayWrapper", op.name("numpy.ndarray"), op.sizes([4])), 4)
    + writers.FOUR
)

#: Content by kind, and what the error must call it.
KINDS: dict[str, tuple[Callable[[Trap], bytes], str]] = {
    "empty": (lambda trap: b"", "empty"),
    "html": (lambda trap: b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
    "html-late": (lambda trap: b"\n\n  <html lang='en'>", "web page"),
    "lfs-pointer": (
        lambda trap: b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 46\n",
        "lfs",
    ),
    "gzip": (lambda trap: gzip.compress(_PICKLE, mtime=0), "gzip"),
    "zlib": (lambda trap: zlib.compress(_PICKLE), "zlib"),
    "png": (lambda trap: b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(40), "png"),
    "jpeg": (lambda trap: b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(40), "jpeg"),
    "tar": (_legacy_tar, "tar"),
    "7z": (lambda trap: b"7z\xbc\xaf\x27\x1c\0\x04" + bytes(40), "7z"),
    "rar": (lambda trap: b"Rar!\x1a\x07\x01\0" + bytes(40), "rar"),
    "npy": (lambda trap: _npy("<f4", bytes(4)), "numpy"),
    "npy-of-objects": (lambda trap: _npy("|O", _CODE), "numpy"),
    "npz": (lambda trap: archive([Member("a.npy", _npy("|O", _CODE))]), "numpy"),
    "hdf5": (lambda trap: b"\x89HDF\r\n\x1a\n" + bytes(40), "hdf5"),
    "torchscript": (lambda trap: _torchscript(), "torchscript"),
    "torch-export": (lambda trap: _exported(), "torch.export"),
    "joblib": (lambda trap: _JOBLIB, "joblib"),
    "zeros": (lambda trap: bytes(5000), "zeros"),
    "random": (lambda trap: random.Random(0).randbytes(5000), ""),
    "text": (lambda trap: b"accuracy 0.93\n", "text"),
    "json": (lambda trap: json.dumps({"w": [1, 2]}).encode(), ""),
    "foreign-archive": (lambda trap: archive([Member("a/b.txt", b"x")]), "archive"),
    "gguf": (lambda trap: b"GGUF" + bytes(40), "gguf"),
    "ggml": (lambda trap: b"tjgg" + bytes(40), "ggml"),
    "onnx": (lambda trap: b"\x08\x07\x12\x07pytorch\x1a\x051.13.1:\xb4\x02\n" + bytes(40), "onnx"),
    "onnx-without-a-producer": (lambda trap: b"\x08\x08:\xb4\x02\n" + bytes(40), "onnx"),
    "core-ml": (lambda trap: b"\x08\x04\x12\xd7\x01\n\x15" + bytes(40), "core ml"),
    "keras-3": (lambda trap: archive([Member("config.json", b"{}"), Member("model.weights.h5", b"\x89HDF")]), "keras"),
    "saved-model": (lambda trap: b"\x08\x01\x12\xc3\x9c\x03\n" + bytes(40), "tensorflow savedmodel"),
    "tensorflow-index": (lambda trap: bytes(40) + bytes.fromhex("57fb808b247547db"), "tensorflow checkpoint"),
    "tensorflow-lite": (lambda trap: b"\x1c\0\0\0TFL3" + bytes(40), "tensorflow lite"),
    "executorch": (lambda trap: b"\x1c\0\0\0ET12" + bytes(40), "executorch"),
    "mxnet": (lambda trap: b"\x12\x01" + bytes(14) + b"\x02" + bytes(30), "mxnet"),
    "openvino": (lambda trap: b'<?xml version="1.0"?>\n<net name="n" version="10">', "openvino"),
    "flax": (lambda trap: b"\x81\xa6params\x82\xa6Conv_0" + bytes(40), "flax"),
    "tensorrt": (lambda trap: b"ptrt" + bytes(40), "tensorrt"),
    "ncnn": (lambda trap: b"7767517\n75 83\n", "ncnn"),
}

#: Kinds that are tried under every name: the name says nothing.
_UNDER_EVERY_NAME = ("html", "lfs-pointer", "tar", "npy-of-objects", "torchscript", "zeros", "random")


def _folder(trap: Trap) -> None:
    trap.path.mkdir()


def _distributed(trap: Trap) -> None:
    """A folder as torch.distributed.checkpoint writes it; its metadata are a plain pickle."""
    trap.path.mkdir()
    (trap.path / ".metadata").write_bytes(op.pickled(op.call("posix.system", op.text(trap.command))))
    (trap.path / "__0_0.distcp").write_bytes(archive(writers.members(_PICKLE)))


def _fifo(trap: Trap) -> None:
    os.mkfifo(trap.path)


def _loop(trap: Trap) -> None:
    trap.path.symlink_to(trap.path)


def _device(trap: Trap) -> None:
    trap.path.symlink_to("/dev/zero")


def _dangling(trap: Trap) -> None:
    trap.path.symlink_to(trap.path.with_name("nothing"))


def _sparse(trap: Trap) -> None:
    with trap.path.open("wb") as file:
        file.truncate(2**40)


def _sparse_with_length(trap: Trap) -> None:
    """A safetensors file of a terabyte, of which only the header stands on the disk."""
    with trap.path.open("wb") as file:
        file.write(writers.safetensors({"w": writers.described(0, 2**40, shape=[2**38])}, b""))
        file.truncate(file.tell() + 2**40 - 1)


def entries() -> Iterator[Entry]:
    for label, (build, says) in KINDS.items():
        yield Entry(f"kind-{label}.pt", build, "refused", says, runs=label == "tar")
        if label in _UNDER_EVERY_NAME:
            for suffix in _SUFFIXES[1:]:
                yield Entry(f"kind-{label}{suffix}", build, "refused", says)
    for label, place, says in (
        ("folder", _folder, "folder|directory"),
        ("distributed-checkpoint", _distributed, "folder|directory"),
        ("fifo", _fifo, "regular|file"),
        ("symlink-loop", _loop, ""),
        ("device", _device, "regular|file"),
        ("dangling-symlink", _dangling, "no such file|not exist|not found|no file"),
        ("terabyte-of-zeros", _sparse, "zeros"),
    ):
        yield Entry(f"kind-{label}.pt", place, "refused", says)
    yield Entry("kind-terabyte.safetensors", _sparse_with_length, "refused")
    yield Entry("name \x1b[2J\n\u202e.pt", lambda trap: b"<html>", "refused", "web page")
    yield Entry("renamed-safetensors.pt", lambda trap: writers.safetensors({"w": writers.described()}), "inert")
    yield Entry("renamed-zip.safetensors", lambda trap: archive(writers.members(_PICKLE)), "inert")
    yield Entry("renamed-legacy.safetensors", lambda trap: writers.legacy(op.named(w=op.legacy_vector())), "inert")
    yield from _cuts()


def _cuts() -> Iterator[Entry]:
    for suffix, whole in {
        ".pt": archive(writers.members(_PICKLE)),
        ".pth": writers.legacy(op.named(w=op.legacy_vector())),
        ".safetensors": writers.safetensors({"w": writers.described()}),
    }.items():
        lengths = [1, 4, 16, 64, 200, *(len(whole) * part // 100 for part in (25, 50, 90, 99)), len(whole) - 1]
        for length in sorted({length for length in lengths if length < len(whole)}):
            yield Entry(f"cut-at-{length}{suffix}", constant(whole[:length]), "refused")
