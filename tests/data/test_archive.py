"""Hostile archives, each made here: none may write a byte, inside or outside."""

import gzip
import io
import os
import stat
import tarfile
import zipfile

import pytest

from coprobe.data import archive as module
from coprobe.data.archive import unpack
from coprobe.errors import InputError


def tar_of(path, *members):
    """A .tar.gz of (name, content or type, changes to the header)."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content, changes in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes) and len(content) != 1:
                info.size = len(content)
            for key, value in changes.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content) if info.size else None)
    return path


def zip_of(path, *members):
    """A .zip of (name, content, changes to the header)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content, changes in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for key, value in changes.items():
                setattr(info, key, value)
            file.writestr(info, content)
    return path


@pytest.fixture(params=[tar_of, zip_of], ids=["tar", "zip"])
def make(request):
    return request.param


def refused(archive, message, folder):
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(InputError, match=message) as caught:
        unpack(archive, folder)
    assert "\n" not in str(caught.value)
    assert sorted(folder.parent.rglob("*")) == before


def test_honest(make, tmp_path):
    archive = make(
        tmp_path / "a",
        ("./pets/", b"", {"type": tarfile.DIRTYPE, "mode": 0o2755} if make is tar_of else {}),
        ("pets/cat.txt", b"meow", {}),
        ("pets/deep/er/..dog", b"woof", {"mode": 0o444} if make is tar_of else {}),
    )
    unpack(archive, tmp_path / "out")
    assert (tmp_path / "out/pets/cat.txt").read_bytes() == b"meow"
    dog = tmp_path / "out/pets/deep/er/..dog"
    assert dog.read_bytes() == b"woof"
    assert stat.S_IMODE(dog.stat().st_mode) == 0o666 & ~umask()  # not what the archive says
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 3


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "//x", "..", "a\\..\\x", "C:x", ".", "a/.."])
def test_names_that_leave(name, make, tmp_path):
    archive = make(tmp_path / "a", ("good", b"good", {}), (name, b"bad", {}))
    refused(archive, "would not lie in the folder; nothing was unpacked", tmp_path / "out")


def test_a_name_with_nul(tmp_path):
    archive = zip_of(tmp_path / "a", ("goodXbad", b"bad", {}))
    archive.write_bytes(archive.read_bytes().replace(b"goodXbad", b"good\0bad"))
    refused(archive, r"member 'good\\x00bad' would not lie in the folder", tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"type": tarfile.SYMTYPE, "linkname": "/etc"}, "a link"),
        ({"type": tarfile.LNKTYPE, "linkname": "good"}, "a link"),
        ({"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, "a device"),
        ({"type": tarfile.BLKTYPE}, "a device"),
        ({"type": tarfile.FIFOTYPE}, "a device"),
        ({"mode": 0o4755}, "a program with setuid"),
        ({"mode": 0o2755}, "a program with setuid"),
    ],
)
def test_kinds_in_a_tar(changes, kind, tmp_path):
    refused(tar_of(tmp_path / "a", ("good", b"good", {}), ("x", b"", changes)), f"'x' is {kind}", tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"external_attr": (stat.S_IFLNK | 0o777) << 16}, "a link or a device"),
        ({"external_attr": (stat.S_IFCHR | 0o777) << 16}, "a link or a device"),
        ({"external_attr": (stat.S_IFREG | 0o4755) << 16}, "a program with setuid"),
    ],
)
def test_kinds_in_a_zip(changes, kind, tmp_path):
    refused(zip_of(tmp_path / "a", ("good", b"g", {}), ("x", b"/etc", changes)), f"'x' is {kind}", tmp_path / "out")


def test_an_encrypted_zip(tmp_path):
    archive = zip_of(tmp_path / "a", ("x", b"secret", {}))
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(data)
    refused(archive, "'x' is encrypted", tmp_path / "out")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_twice_the_same_name(make, tmp_path):
    refused(make(tmp_path / "a", ("x", b"one", {}), ("./x", b"two", {})), "'./x' comes twice", tmp_path / "out")


def test_too_many(make, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_MEMBERS", 2)
    archive = make(tmp_path / "a", *((name, b"", {}) for name in "xyz"))
    refused(archive, "'z' is one of more than 2", tmp_path / "out")


def test_a_zip_of_zeros(tmp_path):
    archive = zip_of(tmp_path / "a", ("zeros", bytes(65 * 2**20), {}))
    assert archive.stat().st_size < 100_000
    refused(archive, r"bytes that unpack to 68157440 or more", tmp_path / "out")


def test_a_zip_that_understates_its_size(tmp_path):
    archive = zip_of(tmp_path / "a", ("zeros", bytes(2**20), {}))
    archive.write_bytes(archive.read_bytes().replace((2**20).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    with pytest.raises(InputError, match="damaged archive"):
        unpack(archive, tmp_path / "out")
    assert all(path.stat().st_size <= 100 for path in (tmp_path / "out").iterdir())


def test_a_tar_of_a_gigabyte(tmp_path):
    info = tarfile.TarInfo("zeros")
    info.size = 2**30
    (tmp_path / "a").write_bytes(gzip.compress(info.tobuf()))
    refused(tmp_path / "a", "bytes that unpack to 1073741824 or more", tmp_path / "out")


def test_a_tar_whose_header_is_large(tmp_path, monkeypatch):
    monkeypatch.setattr("coprobe.data.bounds.FREE_GROWTH", 2**20)
    info = tarfile.TarInfo("header")
    info.type, info.size = tarfile.XHDTYPE, 2**30
    with gzip.open(tmp_path / "a", "wb", compresslevel=1) as file:
        file.write(info.tobuf())
        for _ in range(3):
            file.write(bytes(2**20))
    refused(tmp_path / "a", "bytes that unpack to .* or more", tmp_path / "out")


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9])
def test_damaged(share, make, tmp_path):
    archive = make(tmp_path / "a", ("x", os.urandom(5000), {}))
    data = archive.read_bytes()
    archive.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match=r"a: damaged archive .*; delete it"):
        unpack(archive, tmp_path / "out")
