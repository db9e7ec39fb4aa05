"""The two files that `torch.save` has written: a zip archive, and before version 1.6 pickles in a row."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from typing import Any

import torch

from coprobe.checkpoint.reader.container import check_torch_archive
from coprobe.checkpoint.reader.file import OpenFile
from coprobe.checkpoint.reader.reducers import ORDINARY, storage_type
from coprobe.checkpoint.reader.unpickler import Unpickler
from coprobe.checkpoint.reader.values import Storage
from coprobe.checkpoint.reader.zip_archive import Archive, Member, read_archive
from coprobe.errors import InputError

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
#: The longest pickle of a file, and what each storage adds to it.
LONGEST_PICKLE, PICKLE_PER_STORAGE = 16 << 20, 256
NO_CHECKSUMS = "its format has no checksums, so its content can't be verified"
_AGAIN = "copy or download it again"
_SAVE = "save model.state_dict() with torch.save"


def read_zip(file: OpenFile) -> tuple[Any, list[str], Archive]:
    """Payload, notes and archive of a zip file; every member is compared with its CRC-32.

    Raises:
        InputError: it is no archive of torch, damaged, ambiguous, or describes other storages than it has.
    """
    archive = read_archive(file)
    check_torch_archive(archive.members)
    for member in archive.members.values():
        if member.compressed:
            raise InputError(f"is an archive with the compressed member '{member.name[:60]}', unlike torch's; {_SAVE}")
    notes = _check_content(file, archive)
    storages = {name.removeprefix("data/"): m for name, m in archive.members.items() if name.startswith("data/")}
    filled = sum(member.size > 0 for member in storages.values())
    pickle = archive.members["data.pkl"]
    if pickle.size > LONGEST_PICKLE + PICKLE_PER_STORAGE * filled:
        raise InputError(f"describes its content in {pickle.size:,} bytes; save model.state_dict() alone")
    swapped = _is_swapped(file, archive)
    known: dict[str, Storage] = {}

    def persistent(given: Any) -> Storage:
        key, dtype, nbytes = _declared_storage(given)
        if key not in storages:
            raise InputError(f"lacks the storage '{key[:40]}' that a tensor lies in; {_AGAIN}")
        member = storages[key]
        if key not in known and nbytes != member.size:
            raise InputError(f"declares {nbytes:,} bytes for storage '{key[:40]}' and has {member.size:,}; {_AGAIN}")
        return _declared_once(known, Storage(key, dtype, member.offset, nbytes, swapped))

    unpickler = Unpickler(file.read(pickle.offset, pickle.size), persistent=persistent, storages=filled)
    payload = unpickler.run()
    if unpickler.place != pickle.size:
        raise InputError(f"holds {pickle.size - unpickler.place:,} bytes behind its pickle; {_AGAIN}")
    return payload, notes + _note_on_code(unpickler.called), archive


def _check_content(file: OpenFile, archive: Archive) -> list[str]:
    """Compare every member with its checksum; a note if the file was saved without checksums."""
    filled = [member for member in archive.members.values() if member.size]
    wrong = [member for member in filled if file.crc32(member.offset, member.size) != member.crc]
    if wrong and len(wrong) == len(filled):
        return ["it was saved without checksums, so its content can't be verified"]
    if wrong:
        raise InputError(f"is damaged: '{wrong[0].name[:60]}' in it doesn't match its checksum; {_AGAIN}")
    return []


def _is_swapped(file: OpenFile, archive: Archive) -> bool:
    member = archive.members.get("byteorder", Member("", 0, 0, 0))
    order = file.read(member.offset, min(member.size, 16)).decode("latin-1") or "little"
    if order not in ("little", "big"):
        raise InputError(f"has the unknown byte order '{order}'; {_AGAIN}")
    return order != sys.byteorder


def _declared_storage(given: Any) -> tuple[str, torch.dtype | None, int]:
    """Key, element type and number of bytes of the storage that a persistent id stands for."""
    if not isinstance(given, tuple) or len(given) not in (5, 6) or given[0] != "storage":
        raise InputError(f"refers to something outside the file; {_AGAIN}, or save model.state_dict()")
    _, label, key, _, count, *view = given
    if not isinstance(key, str) or type(count) is not int or not 0 <= count < 2**60:
        raise InputError(f"declares a storage of an impossible size; {_AGAIN}")
    if view and view[0] is not None:
        raise InputError("holds storages that are views, as torch before 0.4 wrote; save model.state_dict() anew")
    dtype = storage_type(label)
    return key, dtype, count * (dtype.itemsize if dtype else 1)


def _declared_once(known: dict[str, Storage], storage: Storage) -> Storage:
    """The storage of that key; raises `InputError` if two tensors declare it differently."""
    first = known.setdefault(storage.key, storage)
    if (first.dtype, first.nbytes) != (storage.dtype, storage.nbytes):
        raise InputError(f"declares two kinds of storage '{storage.key[:40]}'; {_AGAIN}")
    return first


def _note_on_code(called: dict[str, None]) -> list[str]:
    """A note on the code that a pickle names, none of which was run."""
    names = [name for name in called if name not in ORDINARY]
    if not names:
        return []
    shown = ", ".join(name[:60] for name in names[:3]) + (", …" if len(names) > 3 else "")
    return [f"it names code, which is never run ({shown})"]


def read_pickles(file: OpenFile) -> tuple[str, Any, list[str]]:
    """Container, payload and notes of a file that begins with a pickle: `legacy pickle` or `plain pickle`.

    Raises:
        InputError: damaged, cut short, or written by something else.
    """
    data = file.read(0, min(file.size, LONGEST_PICKLE))
    called: dict[str, None] = {}

    def run(place: int, persistent: Callable[[Any], Any] = _no_storage) -> tuple[Any, int]:
        unpickler = Unpickler(data, place, persistent=persistent)
        try:
            value = unpickler.run()
        except InputError:
            if any(name.startswith("joblib.") for name in unpickler.names):  # arrays stand between its opcodes
                raise InputError(f"is a joblib file; {_SAVE}") from None
            if unpickler.place >= len(data) < file.size:
                raise InputError(f"holds a pickle of more than {LONGEST_PICKLE:,} bytes; {_SAVE}") from None
            raise
        called.update(unpickler.called)
        return value, unpickler.place

    first, place = run(0)
    if type(first) is not int or first != _MAGIC:
        if place < file.size:
            raise InputError(f"is a pickle with {file.size - place:,} bytes behind it; {_SAVE}")
        return "plain pickle", first, _note_on_code(called)
    version, place = run(place)
    if type(version) is not int or version != _PROTOCOL:
        raise InputError(f"is a torch file of an unknown protocol; {_SAVE}")
    system, place = run(place)
    little = system.get("little_endian") if isinstance(system, dict) else None
    if not isinstance(little, bool):
        raise InputError(f"is a damaged torch file (no word about its byte order); {_AGAIN}")
    known: dict[str, Storage] = {}

    def persistent(given: Any) -> Any:
        if isinstance(given, tuple) and len(given) == 4 and given[0] == "module":
            return given[1]  # a class, with its source code beside it
        key, dtype, nbytes = _declared_storage(given)
        return _declared_once(known, Storage(key, dtype, -1, nbytes, little != (sys.byteorder == "little")))

    payload, place = run(place, persistent)
    keys, place = run(place)
    _locate(file, known, keys, place)
    return "legacy pickle", payload, [NO_CHECKSUMS, *_note_on_code(called)]


def _no_storage(given: Any) -> Any:
    raise InputError(f"is a pickle that refers to something outside itself; {_SAVE}")


def _locate(file: OpenFile, known: dict[str, Storage], keys: Any, place: int) -> None:
    """Fill in the offset of every storage: they follow the last pickle, in the order of `keys`."""
    if not isinstance(keys, list) or len(keys) != len(known) or any(not isinstance(key, str) for key in keys):
        raise InputError(f"is a damaged torch file (its list of storages is not that of its tensors); {_AGAIN}")
    for key in keys:
        if key not in known or known[key].offset >= 0:
            raise InputError(f"is a damaged torch file (storage '{key[:40]}' is unknown or named twice); {_AGAIN}")
        storage = known[key]
        header = file.read(place, 8)
        count = struct.unpack("<q" if sys.byteorder == "little" else ">q", header)[0] if len(header) == 8 else -1
        size = storage.dtype.itemsize if storage.dtype else 1
        storage.offset = place + 8
        place = storage.offset + storage.nbytes
        if len(header) == 8 and count * size != storage.nbytes:
            raise InputError(
                f"declares {storage.nbytes:,} bytes for storage '{key[:40]}' and has {count * size:,}; {_AGAIN}"
            )
        if place > file.size:
            raise InputError(f"is cut short: it needs {place:,} bytes or more and has {file.size:,}; {_AGAIN}")
    if place != file.size:
        raise InputError(f"has {file.size - place:,} bytes behind its last storage; {_AGAIN}")
