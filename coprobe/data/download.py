"""Fetch the public data sets once, whole or not at all."""

from __future__ import annotations

import contextlib
import http.client
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coprobe.errors import InputError

TIMEOUT = 10.0
"""Seconds without an answer after which a server counts as out of reach."""


@dataclass(frozen=True)
class Download:
    """A file to fetch: its address, its published MD5, and the file or folder that it puts into the data folder.

    Where `holds` differs from the file's own name, the file is an archive and is unpacked.
    """

    url: str
    md5: str
    holds: str


def ensure(name: str, root: Path, download: Download) -> Path:
    """The path of `download.holds` in `root`, fetched first if it isn't there.

    It is fetched and unpacked in a temporary folder and then renamed, so that an attempt that fails leaves nothing.
    What is already there is not examined: its reader checks it.

    Args:
        name: the data set, for messages.
        root: the data folder; made if missing.
        download: what to fetch.

    Raises:
        InputError: it is missing and could not be downloaded.
    """
    place = root / download.holds
    if place.exists():
        return place
    try:
        _fetch(root, download)
    # torchvision reports a wrong checksum as RuntimeError; URLError is an OSError.
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = str(getattr(error, "reason", error)).splitlines()[:1] or [type(error).__name__]
        raise InputError(
            f"no {name} in {root} and it could not be downloaded ({reason[0]}); put {download.holds} there, "
            "or name a folder with --data parquet:DIR or folder:DIR"
        ) from error
    return place


def _fetch(root: Path, download: Download) -> None:
    from torchvision.datasets import utils

    root.mkdir(parents=True, exist_ok=True)
    filename = download.url.rpartition("/")[2]
    # Standard output belongs to results: what torchvision prints goes to standard error.
    quiet = contextlib.redirect_stdout(sys.stderr)
    with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as folder, quiet, _timeout():
        sys.stderr.write(f"downloading {download.url} to {root}\n")
        utils.download_url(download.url, folder, filename, download.md5)
        if filename != download.holds:
            utils.extract_archive(str(Path(folder, filename)), folder)
        Path(folder, download.holds).rename(root / download.holds)


@contextlib.contextmanager
def _timeout() -> Iterator[None]:
    # torchvision opens its connections without one, and would wait for ever.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
