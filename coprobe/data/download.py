"""Fetch the public data sets once, whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import sys
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError

from coprobe._version import __version__
from coprobe.core.files import exclusive
from coprobe.data.archive import expand, unpack
from coprobe.data.bounds import cause
from coprobe.errors import InputError

TIMEOUT = 10.0
"""Seconds without an answer after which a server counts as out of reach."""
ATTEMPTS = 5
"""How often a transfer that breaks off is taken up again, as long as each attempt brings some more."""
MAX_SIZE = 4 * 2**30
CHUNK = 2**16


@dataclass(frozen=True)
class Download:
    """A file to fetch: its address, its published MD5, and the file or folder that it puts into the data folder.

    Where `holds` differs from the file's own name, the file is an archive and is unpacked, or a single file packed by
    gzip, if its name is that of `holds` with `.gz`.
    """

    url: str
    md5: str
    holds: str


def ensure(name: str, root: Path, download: Download) -> Path:
    """The path of `download.holds` in `root`, fetched first if it isn't there.

    It is fetched and unpacked in the folder `.downloads` of `root` and then renamed. An attempt that breaks off
    leaves what it has there, and the next goes on from it; another process waits. What is already in its place is
    not examined: its reader checks it.

    Args:
        name: the data set, for messages.
        root: the data folder; made if missing.
        download: what to fetch.

    Raises:
        InputError: it is missing and could not be downloaded, or what came is not what was published.
    """
    place = root / download.holds
    if place.exists():
        return place
    try:
        root.mkdir(parents=True, exist_ok=True)
        with exclusive(root):
            if not place.exists():  # while this process waited, the other may have fetched it
                _install(root, download)
    except (OSError, http.client.HTTPException) as error:
        reason = error if isinstance(error, HTTPError) else getattr(error, "reason", error)
        raise InputError(
            f"no {name} in {root} and it could not be downloaded ({cause(reason)}); "
            f"put {download.holds} there, or name a folder with --data parquet:DIR or folder:DIR"
        ) from error
    return place


def _install(root: Path, download: Download) -> None:
    filename = download.url.rpartition("/")[2]
    workshop = root / ".downloads"
    workshop.mkdir(exist_ok=True)
    part, unpacked = workshop / f"{filename}.part", workshop / f"{filename}.unpacked"
    sys.stderr.write(f"downloading {download.url} to {root}\n")
    try:
        fetch(download.url, download.md5, part)
        if filename == download.holds:
            part.replace(root / filename)
        elif filename == f"{Path(download.holds).name}.gz":
            expand(part, unpacked)
            (root / download.holds).parent.mkdir(parents=True, exist_ok=True)
            unpacked.replace(root / download.holds)
            part.unlink()
        else:
            shutil.rmtree(unpacked, ignore_errors=True)  # a killed process may have left one
            unpack(part, unpacked)
            (unpacked / download.holds).rename(root / download.holds)
            part.unlink()
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
        with suppress(OSError):  # a file, if that
            unpacked.unlink()
        with suppress(OSError):  # not empty: the next attempt goes on from there
            workshop.rmdir()


def fetch(url: str, md5: str, part: Path) -> None:
    """Download `url` to `part`, going on from what is there, and check that all of it has the digest `md5`.

    Raises:
        InputError: another digest; `part` is deleted.
        OSError: the server can't be reached, answers with an error or a web page, or breaks off too often; what
            there is of the file stays in `part`.
        http.client.HTTPException: the server does not speak HTTP.
    """
    if part.exists() and _md5(part) == md5:
        return
    for attempt in range(ATTEMPTS):
        before = _size(part)
        try:
            _transfer(url, part)
            break
        except (OSError, http.client.HTTPException):
            if attempt == ATTEMPTS - 1 or _size(part) <= before:
                raise
    found = _md5(part)
    if found != md5:
        part.unlink()
        raise InputError(f"{url}: sent a file with MD5 {found}, not {md5} as published; it was deleted, try again")


def _transfer(url: str, part: Path) -> None:
    """Bring the rest of the file, or all of it if the server doesn't send parts."""
    start = _size(part)
    headers = {"User-Agent": f"coprobe/{__version__}"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise
        error.close()
        part.unlink()  # as long as the file or longer, and not the file: its digest was compared
        return _transfer(url, part)
    with response:
        if response.headers.get_content_type() == "text/html":
            raise URLError("the server sent a web page, which may want a login or be an error")
        if response.status == http.client.PARTIAL_CONTENT:
            if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                raise URLError("the server sent another part than it was asked for")
        else:
            start = 0
        received = _write(response, part, start)
        announced = response.headers.get("Content-Length", "")
    if announced.isdecimal() and received < int(announced):
        raise URLError(f"the connection broke off after {received} of {announced} bytes")
    return None


def _write(response: http.client.HTTPResponse, part: Path, start: int) -> int:
    """Write the answer to `part` from byte `start` on; returns how many bytes it was."""
    received = 0
    with part.open("ab" if start else "wb") as file:
        while chunk := response.read(CHUNK):
            received += file.write(chunk)
            if start + received > MAX_SIZE:
                file.truncate(0)
                raise InputError(f"{response.url}: sends more than {MAX_SIZE} bytes; get the data set elsewhere")
    return received


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)  # as published; no other digest of these files is
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
