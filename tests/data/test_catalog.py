import re
from pathlib import Path

import pytest

import coprobe.data
from coprobe.data import DATASETS, default_root, load
from coprobe.errors import InputError

DATA_PACKAGE = Path(coprobe.data.__file__).parent
REAL = Path(__file__).resolve().parents[2] / "../shared/data/cifar10-jpeg"


def test_every_dataset_is_registered():
    assert set(DATASETS) == {
        "cifar10", "cifar100", "svhn", "tiny-imagenet", "mnist", "fashion-mnist", "kmnist", "stl10", "imagenette",
        "digits", "folder", "parquet",
    }  # fmt: skip
    assert all(entry.summary for entry in DATASETS.entries())


@pytest.mark.parametrize(
    ("spec", "split", "limit", "message"),
    [
        ("cifar1", "test", None, "unknown dataset 'cifar1'; did you mean cifar10"),
        ("digits", "tset", None, "unknown split 'tset'; did you mean test"),
        ("folder", "test", None, "folder:DIR"),
        ("parquet:", "test", None, "parquet:DIR"),
        ("digits:somewhere", "test", None, "takes no path, but 'digits:somewhere' was given; write digits"),
        ("digits:", "test", None, "takes no path"),
        ("digits", "test", 0, "--limit must be at least 1"),
        ("folder:absent", "test", 0, "--limit must be at least 1"),
        ("folder:a\0b", "test", None, r"dataset 'folder': can't read 'a\\x00b' \(embedded null byte\)"),
        ("parquet:\ud800", "test", None, r"dataset 'parquet': can't read '\\ud800'"),
        ("parquet:" + "x" * 5000, "test", None, r"can't read 'x{79}…' \(File name too long\)"),
        ("folder:~nobody-of-this-name", "test", None, "can't read '~nobody-of-this-name'"),
    ],
)
def test_load_refuses(spec, split, limit, message):
    with pytest.raises(InputError, match=message):
        load(spec, split, limit=limit)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "tiny-imagenet", "mnist", "stl10", "imagenette"])
def test_missing_and_no_network(name, tmp_path):
    with pytest.raises(InputError, match=rf"no {name} in .*no route to host.*--data parquet:DIR") as caught:
        load(name, root=tmp_path / "new")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "new").iterdir()) == []


def test_limit_and_label_check_come_before_decoding(tmp_path, pictures, write_folder):
    images = pictures(2)
    write_folder(tmp_path, {"a/0.png": images[0], "a/1.png": b"broken", "b/0.png": images[1], "b/1.png": b"broken"})
    data = load(f"folder:{tmp_path}", limit=2)
    assert data.labels.tolist() == [0, 1]
    with pytest.raises(InputError, match=r"a.1\.png: not an image"):
        load(f"folder:{tmp_path}", limit=3)


def test_skip_bad_says_what_it_left_out(tmp_path, pictures, write_folder):
    images = pictures(5)
    files = {f"{c}/{i}.png": images[i] for i, c in enumerate("aabbb")}
    whole = load(f"folder:{write_folder(tmp_path / 'whole', files)}")
    assert whole.skipped == ()
    torn = write_folder(tmp_path / "torn", files | {"b/2.png": b"<html>", "b/3\x1b.png": b""})
    data = load(f"folder:{torn}", skip_bad=True)
    assert data.skipped == (f"{torn / 'b/2.png'}", f"{torn / 'b'}/3\x1b.png")
    assert data.notes[-1] == rf"folder:{torn} (test): left out 2 bad images: 'b/2.png', 'b/3\x1b.png'"
    without = whole.subset([0, 1, 3, 4])
    assert data.digest() == without.digest() != whole.digest()
    assert data.subset([0]).skipped == data.skipped


def test_one_class_only_is_remarked(tmp_path, pictures, write_folder):
    write_folder(tmp_path, {"train/cat/a.png": pictures(1)[0], "train/cat/b.png": pictures(1)[0]})
    assert load(f"folder:{tmp_path}", "train").notes == (
        f"folder:{tmp_path} (train): all 2 images are of one class, 'cat'",
    )
    assert load("digits", limit=1).notes == ()


def test_no_module_reads_numpy_files_or_pickles():
    for path in DATA_PACKAGE.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b(np|numpy)\.(load|fromfile|memmap)\b|allow_pickle|\bpickle\.|extractall", text), path


def test_default_root(monkeypatch, tmp_path):
    monkeypatch.setenv("COPROBE_DATA", str(tmp_path))
    assert default_root() == tmp_path
    monkeypatch.delenv("COPROBE_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_root() == tmp_path / ".cache" / "coprobe" / "data"


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="shared CIFAR-10 is absent")
@pytest.mark.parametrize("split", ["train", "test"])
def test_real_cifar10(split):
    data = load(f"parquet:{REAL}", split, limit=200)
    assert (len(data), data.image_shape, data.num_classes) == (200, (3, 32, 32), 10)
    assert data.labels.bincount().tolist() == [20] * 10
    assert data.classes[0] == "airplane"
    assert 100 < data.images.float().mean() < 140
