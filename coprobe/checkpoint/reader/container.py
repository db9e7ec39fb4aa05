"""Which container a file is, by its content, and what to do about each kind of file that is no checkpoint."""

from __future__ import annotations

import re
from collections.abc import Collection

from coprobe.checkpoint.reader.file import OpenFile
from coprobe.errors import InputError

_SAVE = "save model.state_dict() with torch.save"
_CONVERT = f"convert the model to torch and {_SAVE}"
_PACKED = "unpack it and name the checkpoint in it"
#: First bytes to what they are the beginning of, and the remedy.
_BEGINNINGS = [
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run 'git lfs pull'"),
    (b"\x1f\x8b", "packed by gzip", _PACKED),
    (b"BZh", "packed by bzip2", _PACKED),
    (b"\xfd7zXZ\0", "packed by xz", _PACKED),
    (b"\x28\xb5\x2f\xfd", "packed by zstd", _PACKED),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _PACKED),
    (b"Rar!\x1a\x07", "a RAR archive", _PACKED),
    (b"\x89PNG", "a PNG image", "name a checkpoint file"),
    (b"\xff\xd8\xff", "a JPEG image", "name a checkpoint file"),
    (b"%PDF", "a PDF document", "name a checkpoint file"),
    (b"\x93NUMPY", "a numpy array", _SAVE),
    (b"\x89HDF", "an HDF5 file (Keras?)", _CONVERT),
    (b"GGUF", "a GGUF file", _CONVERT),
    (b"ggjt", "a GGML file", _CONVERT),
    (b"tjgg", "a GGML file", _CONVERT),
    (b"ptrt", "a TensorRT engine", _CONVERT),
    (b"ftrt", "a TensorRT engine", _CONVERT),
    (b"7767517\n", "an ncnn network", _CONVERT),
    (b"PAR1", "a Parquet file", "name a checkpoint file, or give it as --data parquet:FILE"),
]
_WEB = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<body")
#: Bytes 4 to 8 of files that have their mark there.
_MARKS = {b"TFL3": "a TensorFlow Lite model", b"ET12": "an ExecuTorch program", b"ET13": "an ExecuTorch program"}
#: An ONNX model: its version, then who wrote it, or its graph. Core ML has a description in the second place.
_ONNX = re.compile(rb"\x08[\x02-\x20](?:\x12[\x01-\x40][ -~]|[\x1a\x22\x2a\x32\x3a\x42])")
_CORE_ML = re.compile(rb"\x08[\x01-\x0f]\x12[^ -~]*[\x0a\x12\x1a\xa2]")
_MXNET = (0x112).to_bytes(8, "little")
#: The end of the index of a TensorFlow checkpoint, a table of LevelDB.
_LEVELDB = bytes.fromhex("57fb808b247547db")
#: A map of MessagePack with a short text as its first key, as Flax writes it.
_MSGPACK = re.compile(rb"[\x81-\x8f][\xa1-\xbf][ -~]")
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
LOCAL_HEADER, _EMPTY_ARCHIVE = b"PK\x03\x04", b"PK\x05\x06"


def container_of(file: OpenFile) -> str:
    """`zip`, `safetensors` or `pickle`, by content; names of files say nothing.

    Raises:
        InputError: it is something else; the message says what, as far as it shows, and what to do.
    """
    head = file.read(0, 512)
    for beginning, what, remedy in _BEGINNINGS:
        if head.startswith(beginning):
            raise InputError(f"is {what}; {remedy}")
    if head.startswith(LOCAL_HEADER):
        return "zip"
    if head.startswith(_EMPTY_ARCHIVE):
        raise InputError("is an empty archive; copy or download it again")
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**40:
        return "safetensors"
    if head.startswith(_PICKLES):
        return "pickle"
    if what := _foreign(file, head):
        raise InputError(f"is {what}; {_CONVERT}")
    if head.lstrip().lower().startswith(_WEB):
        raise InputError("is a web page, not a checkpoint; download the file itself")
    if head[257:262] == b"ustar":
        raise InputError(f"is a tar archive; {_PACKED}, or {_SAVE} if torch wrote it before version 0.2")
    if not any(head) and not any(any(part) for part in file.chunks(0, min(file.size, 1 << 22))):
        raise InputError("holds nothing but zeros (a disk that lost power?); copy or download it again")
    if head[:1] == b"x" and head[1:2] in (b"\x01", b"\x5e", b"\x9c", b"\xda"):
        raise InputError(f"is packed by zlib, as joblib does; {_SAVE}")
    if all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head):
        raise InputError("is a text file, no checkpoint; name the file that torch.save or safetensors wrote")
    raise InputError(f"is no checkpoint (neither a torch nor a safetensors file); {_SAVE}")


def _foreign(file: OpenFile, head: bytes) -> str:
    """What another framework's file is, that has no fixed beginning; empty if it is none."""
    if head[4:8] in _MARKS:
        return _MARKS[head[4:8]]
    if head.startswith(b"\x08\x01\x12"):
        return "a TensorFlow SavedModel"
    if head.startswith(_MXNET):
        return "an MXNet file"
    if _ONNX.match(head):
        return "an ONNX model, which holds a program"
    if _CORE_ML.match(head):
        return "a Core ML model"
    if head.lstrip().startswith(b"<?xml") and b"<net " in head:
        return "an OpenVINO network"
    if file.read(max(0, file.size - len(_LEVELDB)), len(_LEVELDB)) == _LEVELDB:
        return "the index of a TensorFlow checkpoint"
    return "a MessagePack file (Flax?)" if _MSGPACK.match(head) else ""


def check_torch_archive(members: Collection[str]) -> None:
    """Raise `InputError` unless these are the members of what `torch.save` writes."""
    if "constants.pkl" in members or any(name.startswith("code/") for name in members):
        raise InputError(f"is a TorchScript archive, which holds a program; {_SAVE}")
    if any(name.endswith(("serialized_exported_program.json", "archive_format")) for name in members):
        raise InputError(f"is a torch.export archive, which holds a program; {_SAVE}")
    if "data.pkl" not in members:
        if any(name.endswith("model.weights.h5") for name in members):
            raise InputError(f"is a Keras model; {_CONVERT}")
        if any(name.endswith(".mlmodel") for name in members):
            raise InputError(f"is a Core ML model; {_CONVERT}")
        if members and all(name.endswith(".npy") for name in members):
            raise InputError(f"is a numpy archive (.npz); {_SAVE}")
        raise InputError(f"is an archive, but no torch checkpoint (it has no data.pkl); {_PACKED}, or {_SAVE}")
    others = [name for name in members if name.endswith((".pkl", ".pickle", ".py")) and name != "data.pkl"]
    if others:
        raise InputError(f"is an archive with the further pickle or program '{others[0][:60]}'; {_SAVE}")
