import hashlib
import threading
import urllib.request
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from coprobe.data import download as module
from coprobe.data.download import Download, ensure
from coprobe.errors import InputError

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


@dataclass
class Site:
    """A server on this machine, and how it behaves."""

    url: str = ""
    content: bytes = CONTENT
    kind: str = "application/octet-stream"
    cuts: list = field(default_factory=list)  # after how many bytes each answer breaks off
    parts: bool = True  # whether Range is heeded
    wrong_part: bool = False
    redirects: dict = field(default_factory=dict)
    asked: list = field(default_factory=list)  # the Range of each request

    def answer(self, request):
        asked = request.headers["Range"]
        self.asked.append(asked)
        if request.path in self.redirects:
            request.send_response(302)
            request.send_header("Location", self.redirects[request.path])
            request.end_headers()
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.parts else 0
        if start >= len(self.content):
            request.send_error(416)
            return
        body = self.content[start:]
        request.send_response(206 if start else 200)
        request.send_header("Content-Type", self.kind)
        request.send_header("Content-Length", str(len(body)))
        if start:
            shown = start - 1 if self.wrong_part else start
            request.send_header("Content-Range", f"bytes {shown}-{len(self.content) - 1}/{len(self.content)}")
        request.end_headers()
        request.wfile.write(body[: self.cuts.pop(0)] if self.cuts else body)


@pytest.fixture
def site():
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            site.answer(self)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}/numbers.bin"
    yield site
    server.shutdown()
    server.server_close()


@pytest.fixture
def numbers(site, tmp_path):
    """A function: fetch numbers.bin into tmp_path."""
    return lambda md5=MD5: ensure("numbers", tmp_path, Download(site.url, md5, "numbers.bin"))


@pytest.fixture
def part(tmp_path):
    """Where an attempt that broke off leaves what it has."""
    path = tmp_path / ".downloads" / "numbers.bin.part"
    path.parent.mkdir()
    return path


def test_what_is_there_is_left_alone(tmp_path):
    (tmp_path / "pets").mkdir()
    assert ensure("pets", tmp_path, Download("http://example.invalid/x", MD5, "pets")) == tmp_path / "pets"


def test_whole(site, numbers, tmp_path, capsys):
    place = numbers()
    assert place.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [place]
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"downloading {site.url} to {tmp_path}\n")
    assert numbers() == place
    assert site.asked == [None]


def test_cut_transfers_go_on_where_they_ended(site, numbers):
    site.cuts = [100_000, 50_000]
    assert numbers().read_bytes() == CONTENT
    assert site.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_a_later_attempt_goes_on_too(site, numbers, tmp_path):
    site.cuts = [100_000, 0]
    with pytest.raises(InputError, match=r"no numbers in .*broke off after 0 of 200000 bytes.*put numbers\.bin there"):
        numbers()
    assert [path.name for path in tmp_path.iterdir()] == [".downloads"]
    assert numbers().read_bytes() == CONTENT
    assert site.asked == [None, *["bytes=100000-"] * 2]


def test_attempts_end(site, numbers):
    site.cuts = [1000] * 10
    with pytest.raises(InputError, match="broke off after 1000 of"):
        numbers()
    assert len(site.asked) == module.ATTEMPTS


def test_a_server_that_sends_no_parts(site, numbers, part):
    part.write_bytes(CONTENT[:1000])
    site.parts = False
    assert numbers().read_bytes() == CONTENT
    assert site.asked == ["bytes=1000-"]


def test_already_complete(site, numbers, part):
    part.write_bytes(CONTENT)
    assert numbers().read_bytes() == CONTENT
    assert site.asked == []


@pytest.mark.parametrize("left", [CONTENT[::-1], CONTENT + b"more"])
def test_as_long_or_longer_but_something_else(left, site, numbers, part):
    part.write_bytes(left)
    assert numbers().read_bytes() == CONTENT
    assert site.asked == [f"bytes={len(left)}-", None]


@pytest.mark.parametrize("begun", [b"", b"something else"])
def test_a_wrong_digest_names_both_and_keeps_nothing(begun, site, numbers, part, tmp_path):
    part.write_bytes(begun)
    site.content = b"<script>" + CONTENT
    found = hashlib.md5(begun + site.content[len(begun) :], usedforsecurity=False).hexdigest()
    with pytest.raises(InputError, match=f"{site.url}: sent a file with MD5 {found}, not {MD5} as published; it was"):
        numbers()
    assert not part.exists()
    assert not (tmp_path / "numbers.bin").exists()
    site.content = CONTENT
    assert numbers().read_bytes() == CONTENT


def test_a_web_page_is_refused_and_spares_what_is_there(site, numbers, part):
    part.write_bytes(CONTENT[:1000])
    site.kind, site.parts = "text/html; charset=utf-8", False
    with pytest.raises(InputError, match="the server sent a web page"):
        numbers()
    assert part.read_bytes() == CONTENT[:1000]


def test_another_part_than_asked_for(site, numbers, part):
    part.write_bytes(CONTENT[:1000])
    site.wrong_part = True
    with pytest.raises(InputError, match="another part than it was asked for"):
        numbers()
    assert part.read_bytes() == CONTENT[:1000]


def test_a_redirect_is_followed_and_its_end_is_checked(site, numbers):
    site.redirects = {"/numbers.bin": "/elsewhere"}
    assert numbers().read_bytes() == CONTENT


@pytest.mark.parametrize("target", ["file:///etc/hostname", "/numbers.bin"])
def test_a_redirect_to_a_file_or_to_itself(target, site, numbers):
    site.redirects = {"/numbers.bin": target}
    with pytest.raises(InputError, match=r"could not be downloaded \(HTTP Error 302"):
        numbers()


def test_too_much(site, numbers, part, monkeypatch):
    monkeypatch.setattr(module, "MAX_SIZE", 200_000)
    with pytest.raises(InputError, match="sends more than 200000 bytes"):
        numbers()
    assert part.stat().st_size == 0


def test_an_error_of_the_server(site, numbers):
    site.content = b""
    with pytest.raises(InputError, match=r"could not be downloaded \(HTTP Error 416"):
        numbers()
    assert len(site.asked) == 1


def test_an_interruption_keeps_what_came(site, numbers, part, monkeypatch):
    def interrupt(*arguments, **settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(hashlib, "md5", interrupt)
        with pytest.raises(KeyboardInterrupt):
            numbers()
    assert part.read_bytes() == CONTENT
    assert numbers().read_bytes() == CONTENT
    assert len(site.asked) == 1


def test_two_at_once_fetch_once(site, numbers):
    found = []
    threads = [threading.Thread(target=lambda: found.append(numbers().read_bytes())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [CONTENT] * 3
    assert site.asked == [None]


def test_an_archive_is_unpacked_and_only_its_folder_stays(site, tmp_path):
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as archive:
        archive.writestr("pets/cat.txt", "meow")
        archive.writestr("readme.txt", "not wanted")
    site.content = (tmp_path / "made.zip").read_bytes()
    md5 = hashlib.md5(site.content, usedforsecurity=False).hexdigest()
    root = tmp_path / "root"
    stale = root / ".downloads" / "numbers.bin.unpacked"
    stale.mkdir(parents=True)
    place = ensure("pets", root, Download(site.url, md5, "pets"))
    assert (place / "cat.txt").read_text() == "meow"
    assert sorted(root.rglob("*")) == [place, place / "cat.txt"]


def test_an_archive_without_the_folder(site, tmp_path):
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as archive:
        archive.writestr("readme.txt", "not wanted")
    site.content = (tmp_path / "made.zip").read_bytes()
    md5 = hashlib.md5(site.content, usedforsecurity=False).hexdigest()
    with pytest.raises(InputError, match=r"no pets in .*No such file"):
        ensure("pets", tmp_path / "root", Download(site.url, md5, "pets"))
    assert not (tmp_path / "root" / "pets").exists()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TimeoutError("timed out"), r"\(timed out\)"),
        (OSError(), r"\(OSError\)"),
        (OSError("first\nsecond"), r"\(first\)"),
        (OSError(28, "No space left on device"), "No space left"),
    ],
)
def test_failures_say_why_and_leave_nothing(error, reason, tmp_path, monkeypatch):
    def fail(request, timeout):
        assert timeout == module.TIMEOUT
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    with pytest.raises(InputError, match=f"no pets in .*{reason}.*; put pets there, or name") as caught:
        ensure("pets", tmp_path, Download("http://example.invalid/pets.zip", MD5, "pets"))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_is_a_file(tmp_path):
    (tmp_path / "root").write_text("")
    with pytest.raises(InputError, match="no pets in"):
        ensure("pets", tmp_path / "root", Download("http://example.invalid/pets.zip", MD5, "pets"))


def test_a_file_packed_by_gzip_is_unpacked_where_it_belongs(site, tmp_path, monkeypatch):
    import gzip

    packed = gzip.compress(b"numbers")
    monkeypatch.setattr(module, "fetch", lambda url, md5, part: part.write_bytes(packed))
    place = ensure("numbers", tmp_path, Download("http://example.invalid/numbers.gz", MD5, "a/raw/numbers"))
    assert place.read_bytes() == b"numbers"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
