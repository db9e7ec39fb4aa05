"""Decoded data sets on disk, so that images that were decoded once are mapped into memory the next time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from coprobe._version import __version__
from coprobe.core.files import atomic
from coprobe.data.dataset import Dataset
from coprobe.errors import InputError

FORMAT = 3
"""Goes up when other images come to be decoded from the same files, or when the files here change."""
LARGEST = 8 * 2**30
"""Bytes that all files of a folder may take together; CIFAR-10 takes 0.2 GB, ImageNet's 50 000 test images 7.5 GB."""
SMALLEST = 2**20
"""Bytes below which images are not kept: 300 of CIFAR-10 are decoded in a moment."""
SETTLED = 2 * 10**9
"""Nanoseconds that the coarsest file system's clock stands still; a change within them need not show in its times."""
SUFFIX = ".images"


def cache_key(files: Iterable[Path], labels: Tensor, settings: tuple[object, ...], before: int) -> str:
    """A digest of all that a decoded data set depends on, or nothing if that can't be told.

    The files count by name, inode, size, and times of change in nanoseconds, since reading them all would take
    about as long as decoding them. The time of the last change of the inode is the system's own: no program sets it
    back, as `cp -p` and `tar` do the other.

    Args:
        files: where the encoded images are, named as errors name them.
        labels: int64, batch; of all images.
        settings: what else is asked for and what else was read.
        before: when the images began to be read, in nanoseconds since 1970.

    Returns:
        64 hexadecimal characters; none if a file is gone, or has changed since `SETTLED` before `before`.
    """
    from PIL import __version__ as pillow
    from PIL import features

    # JPEG and WebP leave the last bit to the library; the other formats are exact.
    libraries = [features.version(name) for name in ("jpg", "libjpeg_turbo", "webp")]
    sha = hashlib.sha256(repr((FORMAT, __version__, pillow, libraries, settings, len(labels))).encode())
    sha.update(labels.contiguous().numpy().data)
    try:
        for file in files:
            found = os.stat(file)  # noqa: PTH116 -- of 100 000 files
            if max(found.st_mtime_ns, found.st_ctime_ns) > before - SETTLED:
                return ""
            facts = (os.fspath(file), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            sha.update(repr(facts).encode())
    except OSError:
        return ""
    return sha.hexdigest()


def cached(folder: Path, current_key: Callable[[], str], make: Callable[[], Dataset]) -> Dataset:
    """The data set that `make` gives, read from `folder` if it was kept there under this key, and else kept there.

    Its images are mapped, not read: their pages are shared by all processes that use them, and what is written to
    them stays in the process that writes. A file counts only if all of it is what was written. Where none can be
    written, or the images are less than `SMALLEST`, there is none.

    Args:
        folder: of the cache; what else is in it is left alone.
        current_key: gives the key, and another key, or none, once anything that the data set depends on has changed.
        make: decodes the images.
    """
    key = current_key()
    path = folder / f"{key[:32]}{SUFFIX}"
    if key and (kept := _read(path, key)):
        with suppress(OSError):
            os.utime(path)  # the time of its last use
        return kept
    dataset = make()
    if key and dataset.images.nbytes >= SMALLEST and current_key() == key:
        _write(path, key, dataset)
    return dataset


def _read(path: Path, key: str) -> Dataset | None:
    """The data set that `_write` has written there under this key."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            seal, _, facts = (file.metadata() or {}).get("coprobe", "").partition(" ")
            if seal != _seal(key, facts):
                return None
            found: dict[str, Any] = json.loads(facts)
            found |= {name: tuple(found[name]) for name in ("classes", "skipped", "notes", "names")}  # JSON has lists
            digest = found.pop("digest")
            dataset = Dataset(file.get_tensor("images"), file.get_tensor("labels"), **found)
    except (OSError, RuntimeError, SafetensorError, InputError):  # not there, gone, not for us, or damaged
        return None
    return dataset if dataset.digest() == digest else None


def _write(path: Path, key: str, dataset: Dataset) -> None:
    """Keep the data set, if there is room and nothing forbids it."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    kept = {name: getattr(dataset, name) for name in ("classes", "name", "split", "skipped", "notes", "names")}
    facts = json.dumps({**kept, "digest": dataset.digest()})
    tensors = {"images": dataset.images.contiguous(), "labels": dataset.labels.contiguous()}
    with suppress(OSError, SafetensorError):
        if _has_room(path.parent, sum(tensor.nbytes for tensor in tensors.values())):
            with atomic(path) as temporary:
                temporary.touch()
                mode = temporary.stat().st_mode
                save_file(tensors, temporary, {"coprobe": f"{_seal(key, facts)} {facts}"})
                temporary.chmod(mode)  # save_file makes files of mode 0600, whatever the umask


def _seal(key: str, facts: str) -> str:
    return hashlib.sha256(f"{key} {facts}".encode()).hexdigest()


def _has_room(folder: Path, size: int) -> bool:
    """Whether `size` more bytes are within bounds, once the files that have been unused longest are gone.

    Whatever is there, half of the free disk stays free.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if size > min(LARGEST, shutil.disk_usage(folder).free // 2):
        return False
    # With what killed processes have left half-written, of which safetensors' begins with ".tmp".
    found = [(file.stat(), file) for pattern in (f"*{SUFFIX}", ".tmp*") for file in folder.glob(pattern)]
    total = sum(status.st_size for status, _ in found)
    for status, file in sorted(found, key=lambda item: item[0].st_mtime_ns):
        if total + size <= LARGEST:
            break
        file.unlink(missing_ok=True)
        total -= status.st_size
    return True
