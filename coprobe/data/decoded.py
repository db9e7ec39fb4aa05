"""Decoded images kept in files, so that what was decoded once is mapped into memory the next time."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from coprobe._version import __version__
from coprobe.core.files import atomic
from coprobe.data.dataset import Dataset
from coprobe.data.gather import Gathered

FORMAT = 1
"""Goes up when `gather` comes to answer anything else for the same files, or when the files here change."""
LARGEST = 8 * 2**30
"""Bytes that all files of a folder may take together; CIFAR-10 takes 0.2 GB, ImageNet's 50 000 test images 7.5 GB."""
SMALLEST = 2**20
"""Bytes below which no copy is kept: 300 images of CIFAR-10 are decoded in a moment."""
SETTLED = 2 * 10**9
"""Nanoseconds that the coarsest file system's clock stands still; a change within them need not show in its times."""
SUFFIX = ".images"
# A file is a seal (the SHA-256 over key and header), the length of the header, the header, and the pixels.
_SEAL, _LENGTH, _ALIGNED = 32, 8, 64


def identity(files: Iterable[Path], labels: Tensor, settings: tuple[object, ...], before: int) -> str:
    """A digest of all that decides what `gather` answers, or nothing if that can't be told.

    The files count by name, inode, size, and times of change in nanoseconds, since reading them all would take
    about as long as decoding them. The time of the last change of the inode is the system's own: no program sets it
    back, as `cp -p` and `tar` do the other.

    Args:
        files: where the encoded images are, named as errors name them.
        labels: int64, batch; of all images.
        settings: what else is asked for.
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


def remembered(
    folder: Path, identify: Callable[[], str], decode: Callable[[], Gathered], build: Callable[[Gathered], Dataset]
) -> Dataset:
    """The data set that `build` makes of what `decode` answers, or of the copy of that in `folder`.

    The copy is mapped, not read: its pages are shared by all processes that use it, and what is written to the images
    stays in the process that writes. It serves only if header and digest of the data set are those that were written.
    Where a copy can't be written, or the images are less than `SMALLEST`, there is none.

    Args:
        folder: where the copies are; nothing else in it is touched.
        identify: gives the key of the copy, and another key, or none, once anything it is made from has changed.
        decode: gives the images.
        build: makes a data set of them.
    """
    key = identify()
    path = folder / f"{key[:32]}{SUFFIX}"
    if key and (opened := _open(path, key)):
        found, digest = opened
        dataset = build(found)
        if dataset.digest() == digest:
            with suppress(OSError):
                os.utime(path)  # the time of its last use
            return dataset
    found = decode()
    dataset = build(found)
    if key and identify() == key:
        with suppress(OSError):
            _write(path, key, found, dataset.digest())
    return dataset


def _open(path: Path, key: str) -> tuple[Gathered, str] | None:
    """What `_write` has put there for this key, the pixels yet to be compared with the digest."""
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError):  # not there, not for us, or empty
        return None
    begin = _SEAL + _LENGTH
    end = begin + int.from_bytes(mapped[_SEAL:begin], "little")
    if end > len(mapped) or _seal(key, header := mapped[begin:end]) != mapped[:_SEAL]:
        return None
    facts = json.loads(header)
    start = _aligned(end)
    if len(mapped) - start != math.prod(facts["shape"]):
        return None
    images = torch.frombuffer(mapped, dtype=torch.uint8, offset=start).view(facts["shape"])
    return Gathered(images, torch.tensor(facts["rows"]), tuple(facts["skipped"])), facts["digest"]


def _write(path: Path, key: str, found: Gathered, digest: str) -> None:
    if found.images.nbytes < SMALLEST:
        return
    facts = {
        "shape": list(found.images.shape),
        "rows": found.rows.tolist(),
        "skipped": found.skipped,
        "digest": digest,
    }
    header = json.dumps(facts).encode()
    head = _seal(key, header) + len(header).to_bytes(_LENGTH, "little") + header
    head = head.ljust(_aligned(len(head)), b"\0")
    if _has_room(path.parent, len(head) + found.images.nbytes):
        with atomic(path) as temporary, temporary.open("wb") as file:
            file.write(head)
            file.write(found.images.contiguous().numpy().data)


def _seal(key: str, header: bytes) -> bytes:
    return hashlib.sha256(key.encode() + header).digest()


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _has_room(folder: Path, size: int) -> bool:
    """Whether `size` more bytes are within bounds, once the files that have been unused longest are gone.

    Whatever is there, half of the free disk stays free.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if size > min(LARGEST, shutil.disk_usage(folder).free // 2):
        return False
    # With what killed processes have left half-written.
    files = sorted((found.stat().st_mtime_ns, found.stat().st_size, found) for found in folder.glob(f"*{SUFFIX}"))
    total = sum(bytes_ for _, bytes_, _ in files)
    for _, bytes_, file in files:
        if total + size <= LARGEST:
            break
        file.unlink(missing_ok=True)
        total -= bytes_
    return True
