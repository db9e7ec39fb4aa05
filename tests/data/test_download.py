import contextlib
import socket
import zipfile
from pathlib import Path

import pytest

from coprobe.data.download import TIMEOUT, Download, ensure
from coprobe.errors import InputError

ARCHIVE = Download("http://example.invalid/pets.zip", "0" * 32, "pets")


def test_what_is_there_is_left_alone(tmp_path):
    (tmp_path / "pets").mkdir()
    assert ensure("pets", tmp_path, ARCHIVE) == tmp_path / "pets"


def test_an_archive_is_unpacked_and_only_its_folder_stays(tmp_path, monkeypatch, capsys):
    def serve(url, root, filename, md5):
        assert (url, filename, md5) == (ARCHIVE.url, "pets.zip", ARCHIVE.md5)
        assert socket.getdefaulttimeout() == TIMEOUT
        print("chatter")  # noqa: T201
        with zipfile.ZipFile(Path(root, filename), "w") as archive:
            archive.writestr("pets/cat.txt", "meow")
            archive.writestr("readme.txt", "not wanted")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", serve)
    place = ensure("pets", tmp_path / "root", ARCHIVE)
    assert (place / "cat.txt").read_text() == "meow"
    assert list((tmp_path / "root").iterdir()) == [place]
    assert socket.getdefaulttimeout() is None
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "chatter" in captured.err


def test_a_plain_file_is_moved(tmp_path, monkeypatch):
    def serve(url, root, filename, md5):
        Path(root, filename).write_bytes(b"numbers")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", serve)
    place = ensure("numbers", tmp_path, Download("http://example.invalid/n.mat", "0" * 32, "n.mat"))
    assert place.read_bytes() == b"numbers"
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("File not found or corrupted."), "File not found or corrupted"),
        (TimeoutError("timed out"), "timed out"),
        (OSError(), "OSError"),
        (OSError("first\nsecond"), r"\(first\)"),
    ],
)
def test_failures_say_why_and_leave_nothing(error, reason, tmp_path, monkeypatch):
    def fail(url, root, filename, md5):
        Path(root, filename).write_bytes(b"half")
        raise error

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fail)
    with pytest.raises(InputError, match=f"no pets in .*{reason}.*; put pets there, or name") as caught:
        ensure("pets", tmp_path, ARCHIVE)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(url, root, filename, md5):
        Path(root, filename).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("torchvision.datasets.utils.download_url", interrupt)
    with contextlib.suppress(KeyboardInterrupt):
        ensure("pets", tmp_path, ARCHIVE)
    assert list(tmp_path.iterdir()) == []
    assert socket.getdefaulttimeout() is None


def test_a_root_that_is_a_file(tmp_path):
    (tmp_path / "root").write_text("")
    with pytest.raises(InputError, match="no pets in"):
        ensure("pets", tmp_path / "root", ARCHIVE)
