"""What was decoded once is the same when it comes from its copy, and a copy that could be wrong is never used."""

import errno
import os
import shutil
import subprocess
from types import SimpleNamespace

import PIL.features
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file

from coprobe.data import Dataset, default_root, disk_cache, load
from coprobe.errors import InputError
from tests.started import FORKS

BYTES = 3 * 8 * 8 + 8
"""Of an image and its label."""


@pytest.fixture
def settled(monkeypatch):
    """Files count as settled that the test has just written, and small data sets are kept."""
    monkeypatch.setattr(disk_cache, "SETTLED", -(10**11))
    monkeypatch.setattr(disk_cache, "SMALLEST", 0)


@pytest.fixture
def decodes(monkeypatch):
    """The files that Pillow has opened."""
    opened = []
    open_ = PIL.Image.open
    monkeypatch.setattr(PIL.Image, "open", lambda file, **how: opened.append(file) or open_(file, **how))
    return opened


@pytest.fixture
def source(tmp_path, pictures, encode, write_folder):
    """Five images in two classes; all files have one size."""
    files = {f"{'ab'[i % 2]}/{i}.bmp": encode(image, "BMP") for i, image in enumerate(pictures(5))}
    return write_folder(tmp_path / "source", files)


@pytest.fixture
def root(tmp_path, settled):
    return tmp_path / "root"


@pytest.fixture
def kept(source, root):
    """The one copy, of `source`."""
    load(f"folder:{source}", root=root)
    (path,) = copies(root)
    return path


def copies(root):
    return sorted((root / "decoded").glob("*"))


def facts(data):
    """All that a data set says."""
    return data.images.tolist(), data.labels.tolist(), data.classes, data.name, data.split, data.skipped, data.notes


def assert_as_without(spec, root, decodes, *, is_decoded, **options):
    """Load through the copies; the result is that without them."""
    plain = load(spec, root=root, cache=False, **options)
    decodes.clear()
    data = load(spec, root=root, **options)
    assert bool(decodes) == is_decoded
    assert facts(data) == facts(plain)
    assert data.digest() == plain.digest()


@pytest.mark.parametrize("kind", ["folder", "parquet", "tiny-imagenet"])
def test_decoded_once(kind, tmp_path, source, settled, decodes, pictures, write_parquet, request):
    root = tmp_path / "root"
    spec = f"folder:{source}"
    if kind == "parquet":
        spec = f"parquet:{write_parquet(tmp_path / 'a.parquet', pictures(5), [0, 1, 0, 1, 1])}"
    elif kind == "tiny-imagenet":
        root, spec = request.getfixturevalue("tiny_imagenet_root"), kind
    for limit in (None, 2):
        assert_as_without(spec, root, decodes, is_decoded=True, limit=limit)
        assert_as_without(spec, root, decodes, is_decoded=False, limit=limit)
    assert len(copies(root)) == 2


def test_copies_are_in_the_data_folder(source, settled, monkeypatch, tmp_path):
    monkeypatch.setenv("COPROBE_DATA", str(tmp_path / "mine"))
    load(f"folder:{source}")
    assert [path.suffix for path in copies(default_root())] == [disk_cache.SUFFIX]


@pytest.mark.parametrize("limit", [None, 1, 3, 5])
def test_bad_images_are_left_out_alike(limit, source, root, decodes):
    (source / "a" / "0.bmp").write_bytes(b"")
    (source / "b" / "3\x1b\udcff.bmp").write_bytes(b"<html>")
    assert_as_without(f"folder:{source}", root, decodes, is_decoded=True, limit=limit, skip_bad=True)
    assert_as_without(f"folder:{source}", root, decodes, is_decoded=False, limit=limit, skip_bad=True)
    # With bad images about, every file counts, since any may stand in for one.
    (source / "a" / "2.bmp").write_bytes((source / "b" / "1.bmp").read_bytes())
    assert_as_without(f"folder:{source}", root, decodes, is_decoded=True, limit=limit, skip_bad=True)


def test_bad_images_are_refused_alike(kept, source, root):
    (source / "a" / "0.bmp").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(InputError, match=r"0\.bmp: the image has no bytes; replace or remove it, or pass --skip"):
            load(f"folder:{source}", root=root)
    load(f"folder:{source}", root=root, skip_bad=True)
    with pytest.raises(InputError, match=r"0\.bmp: the image has no bytes"):
        load(f"folder:{source}", root=root)


def test_switched_off(source, root, decodes):
    load(f"folder:{source}", root=root, cache=False)
    assert not root.exists()
    load(f"folder:{source}", root=root)
    decodes.clear()
    load(f"folder:{source}", root=root, cache=False)
    assert len(decodes) == 5


def replaced(source):
    """Another file of the same size and time under the name."""
    path, other = source / "a" / "0.bmp", source / "b" / "1.bmp"
    status = path.stat()
    shutil.copy(other, source / "new")
    os.utime(source / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
    (source / "new").replace(path)


def overwritten(source):
    """Other bytes in the same file, whose time is set back."""
    path, other = source / "a" / "0.bmp", source / "b" / "1.bmp"
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # the system's clock ticks some hundred times a second
        path.write_bytes(other.read_bytes())
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def added(source):
    shutil.copy(source / "a" / "0.bmp", source / "a" / "9.bmp")


def moved(source):
    (source / "a" / "4.bmp").rename(source / "b" / "4.bmp")


def linked(source):
    """A link that leads elsewhere."""
    (source / "a" / "0.bmp").unlink()
    (source / "a" / "0.bmp").symlink_to(source / "b" / "1.bmp")


@pytest.mark.parametrize("change", [replaced, overwritten, added, moved, linked])
def test_a_changed_source_is_decoded_again(change, kept, source, root, decodes):
    change(source)
    assert_as_without(f"folder:{source}", root, decodes, is_decoded=True)
    assert_as_without(f"folder:{source}", root, decodes, is_decoded=False)


@pytest.mark.parametrize(
    ("thing", "name", "value"),
    [
        (disk_cache, "FORMAT", 0),
        (disk_cache, "__version__", "0"),
        (PIL, "__version__", "0"),
        (PIL.features, "version", str),
    ],
)
def test_other_software_decodes_again(thing, name, value, kept, source, root, decodes, monkeypatch):
    monkeypatch.setattr(thing, name, value)
    assert_as_without(f"folder:{source}", root, decodes, is_decoded=True)
    assert len(copies(root)) == 2


def test_everything_counts_that_decides_the_result(monkeypatch):
    facts = {"st_ino": 1, "st_size": 2, "st_mtime_ns": 3, "st_ctime_ns": 4}

    def identified(names="ab", labels=(0, 1), settings=(None, False), **changed):
        monkeypatch.setattr(os, "stat", lambda name: SimpleNamespace(**facts | changed))
        return disk_cache.cache_key(names, torch.tensor(labels), settings, 10**10)

    keys = [identified(), identified("a"), identified("ac"), identified(labels=(1, 1)), identified(settings=(2, False))]
    keys += [identified(**{name: 5}) for name in facts]
    assert len(set(keys)) == len(keys) == 9
    assert all(len(key) == 64 for key in keys)
    assert identified() == keys[0]
    for name in ("st_mtime_ns", "st_ctime_ns"):
        assert identified(**{name: 10**10 - disk_cache.SETTLED + 1}) == ""
    monkeypatch.undo()
    assert disk_cache.cache_key(["/absent"], torch.tensor([0]), (), 10**20) == ""


def test_files_that_may_still_be_changing_are_not_kept(source, tmp_path, monkeypatch):
    """A second change within the same tick of the clock would not show."""
    monkeypatch.setattr(disk_cache, "SMALLEST", 0)
    load(f"folder:{source}", root=tmp_path)
    assert not (tmp_path / "decoded").exists()
    now = (source / "a" / "0.bmp").stat().st_ctime_ns
    later = max(path.stat().st_ctime_ns for path in source.rglob("*.bmp")) + disk_cache.SETTLED
    for instant, is_kept in ((now, False), (later - 1, False), (later, True)):
        monkeypatch.setattr("coprobe.data.catalog.time.time_ns", lambda instant=instant: instant)
        load(f"folder:{source}", root=tmp_path)
        assert (tmp_path / "decoded").exists() == is_kept


def test_files_that_change_while_they_are_decoded_are_not_kept(source, root, monkeypatch):
    open_ = PIL.Image.open
    monkeypatch.setattr(PIL.Image, "open", lambda file, **how: replaced(source) or open_(file, **how))
    load(f"folder:{source}", root=root)
    assert not (root / "decoded").exists()


def flipped(position):
    """A damage: one bit, in the byte at `position`."""

    def damage(content):
        changed = bytearray(content)
        changed[position] ^= 1
        return bytes(changed)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        *(
            pytest.param(flipped(position), id=f"bit at {position}")
            for position in (0, 7, 8, 90, *range(100, 800, 50), -1000, -300, -1)
        ),
        *(pytest.param(lambda content, size=size: content[:size], id=f"cut {size}") for size in (0, 7, 9, 60, 500, -1)),
        pytest.param(lambda content: content + b"\0", id="longer"),
        pytest.param(lambda content: bytes(len(content)), id="zeros"),
        pytest.param(lambda content: b"\xff" * len(content), id="ones"),
        pytest.param(lambda content: b"not ours\n", id="text"),
    ],
)
def test_a_damaged_copy_is_replaced(damage, kept, source, root, decodes):
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    assert kept.read_bytes() != whole
    assert_as_without(f"folder:{source}", root, decodes, is_decoded=True)
    assert copies(root) == [kept]
    assert kept.read_bytes() == whole


def test_the_copy_of_something_else_is_replaced(kept, source, root, decodes):
    whole = kept.read_bytes()
    load(f"folder:{source}", root=root, limit=4)
    (other,) = set(copies(root)) - {kept}
    kept.write_bytes(other.read_bytes())
    assert_as_without(f"folder:{source}", root, decodes, is_decoded=True)
    assert kept.read_bytes() == whole


def test_a_folder_in_place_of_the_copy_is_left_alone(kept, source, root, decodes):
    kept.unlink()
    kept.mkdir()
    (kept / "mine").touch()
    assert_as_without(f"folder:{source}", root, decodes, is_decoded=True)
    assert list(kept.iterdir()) == [kept / "mine"]
    assert copies(root) == [kept]


def test_what_is_written_to_the_images_reaches_no_file(kept, source, root):
    whole = kept.read_bytes()
    data = load(f"folder:{source}", root=root)
    before = data.images.clone()
    data.images.fill_(7)
    assert kept.read_bytes() == whole
    again = load(f"folder:{source}", root=root)
    assert torch.equal(again.images, before)
    assert (data.images == 7).all()


def test_a_mapped_data_set_knows_its_digest_and_outlives_its_file(kept, source, root, monkeypatch):
    data = load(f"folder:{source}", root=root)
    kept.unlink()
    alike = Dataset(data.images.clone(), data.labels, data.classes, data.name, data.split)
    digest = alike.digest()
    monkeypatch.setattr("coprobe.data.dataset.hashlib", None)
    assert data.digest() == digest


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_where_nothing_can_be_written_there_is_no_copy(number, source, root, decodes, monkeypatch):
    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("coprobe.core.files.os.fsync", fail)
    for _ in range(2):
        assert_as_without(f"folder:{source}", root, decodes, is_decoded=True)
    assert copies(root) == []


def test_where_no_folder_can_be_made_there_is_no_copy(source, tmp_path, settled, decodes):
    (tmp_path / "file").touch()
    assert_as_without(f"folder:{source}", tmp_path / "file", decodes, is_decoded=True)
    assert (tmp_path / "file").read_bytes() == b""


@pytest.fixture
def mounted(tmp_path):
    """A function: a file system of its own with these options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if (
            os.geteuid()
            or not shutil.which("mount")
            or subprocess.run(command, capture_output=True, check=False).returncode
        ):
            pytest.skip("no file system can be mounted here")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)


def test_a_read_only_file_system(mounted, source, settled, decodes):
    place = mounted("ro")
    assert_as_without(f"folder:{source}", place, decodes, is_decoded=True)
    assert list(place.iterdir()) == []


def test_a_full_file_system(mounted, source, settled, decodes, monkeypatch):
    place = mounted("size=65536")
    (place / "decoded").mkdir()
    with (place / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while file.write(bytes(4096)):
            pass
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(2**40, 0, 2**40))
    assert_as_without(f"folder:{source}", place, decodes, is_decoded=True)
    assert copies(place) == []


def test_what_is_decoded_in_a_moment_is_not_kept(source, root, monkeypatch):
    for smallest, is_kept in ((5 * 3 * 8 * 8 + 1, False), (5 * 3 * 8 * 8, True)):
        monkeypatch.setattr(disk_cache, "SMALLEST", smallest)
        load(f"folder:{source}", root=root)
        assert (root / "decoded").exists() == is_kept


def test_half_of_the_free_disk_stays_free(kept, source, root, monkeypatch):
    size = 5 * BYTES
    kept.unlink()
    for free, is_kept in ((2 * size - 1, False), (2 * size, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda place, free=free: shutil._ntuple_diskusage(9, 9, free))
        load(f"folder:{source}", root=root)
        assert kept.exists() == is_kept


def test_the_copy_that_was_unused_longest_makes_room(source, root, monkeypatch, decodes):
    spec = f"folder:{source}"
    paths = {}
    for age, limit in ((3, 5), (2, 4), (1, 3)):
        load(spec, root=root, limit=limit)
        (paths[limit],) = set(copies(root)) - set(paths.values())
        os.utime(paths[limit], (10**9 - age, 10**9 - age))
    mine = root / "decoded" / "notes.txt"
    mine.write_text("not a copy")
    os.utime(mine, (1, 1))
    for name in (f".1-0000.tmp{disk_cache.SUFFIX}", ".tmp9Zx0aB"):  # of killed processes
        left = root / "decoded" / name
        left.write_bytes(bytes(300))
        os.utime(left, (2, 2))

    load(spec, root=root, limit=5)  # the oldest is used once more
    sizes = {limit: path.stat().st_size for limit, path in paths.items()}
    monkeypatch.setattr(disk_cache, "LARGEST", sum(sizes.values()))
    load(spec, root=root, limit=2)
    new = set(copies(root)) - {*paths.values(), mine}
    assert len(new) == 1
    assert set(copies(root)) == {paths[5], paths[3], mine, *new}

    monkeypatch.setattr(disk_cache, "LARGEST", 4 * BYTES - 1)
    assert_as_without(spec, root, decodes, is_decoded=True, limit=4)
    assert set(copies(root)) == {paths[5], paths[3], mine, *new}


def load_often(spec, root, times):
    """The digests that a process sees while others write and remove the same copy."""
    disk_cache.SETTLED, disk_cache.SMALLEST = -(10**11), 0
    digests = set()
    for _ in range(times):
        digests.add(load(spec, root=root).digest())
        for path in copies(root):
            if path.suffix == disk_cache.SUFFIX and not path.name.startswith("."):
                path.unlink(missing_ok=True)
    return digests


@pytest.mark.procs
def test_several_processes_at_once(source, root):
    spec = f"folder:{source}"
    expected = load(spec, cache=False).digest()
    with FORKS.Pool(2) as pool:
        seen = pool.starmap(load_often, [(spec, root, 30)] * 2, chunksize=1)
    assert seen == [{expected}] * 2
    assert [path for path in copies(root) if path.name.startswith(".")] == []


def test_everyone_can_read_what_is_kept(source, root):
    before = os.umask(0o027)
    try:
        data = load(f"folder:{source}", root=root)
    finally:
        os.umask(before)
    (path,) = copies(root)
    assert path.stat().st_mode & 0o777 == 0o640
    kept = load_file(path)
    assert torch.equal(kept["images"], data.images) and torch.equal(kept["labels"], data.labels)
