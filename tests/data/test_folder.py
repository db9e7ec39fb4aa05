import os
import sys

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from coprobe.data import load
from coprobe.data.folder import SUFFIXES, class_folders, list_images
from coprobe.errors import InputError


@pytest.mark.parametrize("test_name", ["test", "val", "validation"])
def test_split_folders(test_name, tmp_path, pictures, write_folder):
    images = pictures(3)
    write_folder(
        tmp_path,
        {"train/cat/a.png": images[0], "train/dog/b.PNG": images[1], f"{test_name}/dog/sub/c.png": images[2]},
    )
    train, test = load(f"folder:{tmp_path}", "train"), load(f"folder:{tmp_path}", "test")
    assert train.labels.tolist() == [0, 1]
    assert np.array_equal(train.images.numpy(), images[:2].transpose(0, 3, 1, 2))
    assert test.classes == train.classes == ("cat", "dog")
    assert test.labels.tolist() == [1]  # counted as train counts, though test has no cats
    assert test.name == f"folder:{tmp_path}"


def test_without_split_folders_either_split_is_everything(tmp_path, pictures, write_folder):
    images = pictures(2)
    write_folder(tmp_path, {"cat/a.png": images[0], "dog/b.png": images[1], "dog/notes.txt": b"not an image"})
    assert load(f"folder:{tmp_path}", "train").digest() == load(f"folder:{tmp_path}", "test").digest()
    assert len(load(f"folder:{tmp_path}")) == 2


def test_notes(tmp_path, pictures, write_folder):
    images = pictures(2)
    write_folder(tmp_path, {"cat/a.png": images[0], "dog/b.png": images[1], "eel/none.txt": b""})
    assert load(f"folder:{tmp_path}").notes == (
        f"folder:{tmp_path} (test): has no folders train and test, so the same images serve as either split",
        f"folder:{tmp_path} (test): 1 of 3 classes without an image: 'eel'",
    )
    write_folder(tmp_path / "split", {f"{split}/{c}/a.png": images[0] for split in ("train", "test") for c in "ab"})
    assert load(f"folder:{tmp_path / 'split'}").notes == ()


def test_hidden_names_are_passed_over(tmp_path, pictures, write_folder):
    images = pictures(2)
    write_folder(tmp_path, {"cat/a.png": images[0], "dog/b.png": images[1]})
    digest = load(f"folder:{tmp_path}").digest()
    write_folder(tmp_path, {".ipynb_checkpoints/a.png": b"", "cat/._a.png": b"", "dog/.trash/c.png": b""})
    data = load(f"folder:{tmp_path}")
    assert (data.classes, data.digest()) == (("cat", "dog"), digest)


def test_order_is_that_of_torchvision(tmp_path, pictures, write_folder):
    names = [
        "b/z.png",
        "b/a/1.png",
        "b/a-b/1.png",
        "b/a.png",
        "a/B.png",
        "a/a.JPG",
        "a/b/c.png",
        "a b/x.png",
        "Z/1.png",
    ]
    write_folder(tmp_path, dict(zip(names, pictures(len(names)), strict=True)))
    reference = ImageFolder(tmp_path)
    classes = class_folders(tmp_path)
    assert list(classes) == reference.classes
    listed = list_images(tmp_path, reference.class_to_idx, SUFFIXES)
    assert [(str(path), label) for path, label in listed] == reference.samples


def test_circles_of_links_end(tmp_path, pictures, write_folder):
    write_folder(tmp_path / "data", {"cat/a.png": pictures(1)[0], "dog/b.png": pictures(1)[0]})
    for name in ("one", "two", "three"):
        (tmp_path / "data" / "cat" / name).symlink_to(tmp_path / "data" / "cat")
    assert len(load(f"folder:{tmp_path / 'data'}")) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_names_of_any_bytes(tmp_path, pictures, encode):
    for name in (b"\x1b[31mred", b"<b>&amp;", b"\xff\xfe", "\u202egnp".encode(), b"new\nline"):
        folder = tmp_path / os.fsdecode(name)
        folder.mkdir()
        (folder / os.fsdecode(name + b".png")).write_bytes(encode(pictures(1)[0]))
    data = load(f"folder:{tmp_path}")
    assert len(data) == data.num_classes == 5
    (tmp_path / os.fsdecode(b"\xff\xfe") / "bad\n.png").write_bytes(b"")
    data = load(f"folder:{tmp_path}", skip_bad=True)
    assert data.notes[-1].endswith(r"left out 1 bad image: '\udcff\udcfe/bad\n.png'")


def test_truncated_jpeg_is_named(tmp_path, pictures, encode, write_folder):
    whole = encode(pictures(1, 64, 64)[0], "JPEG")
    write_folder(tmp_path, {"cat/bad.jpg": whole[: len(whole) // 2]})
    with pytest.raises(InputError, match=r"bad\.jpg: damaged image"):
        load(f"folder:{tmp_path}")


def test_html_named_jpg(tmp_path, write_folder):
    write_folder(tmp_path, {"cat/page.jpg": b"<html>404</html>"})
    with pytest.raises(InputError, match=r"page\.jpg: not an image"):
        load(f"folder:{tmp_path}")


def test_mixed_sizes(tmp_path, pictures, write_folder):
    write_folder(tmp_path, {"cat/a.png": pictures(1)[0], "cat/b.png": pictures(1, 9, 8)[0]})
    with pytest.raises(InputError, match=r"b\.png: 8×9 pixels, but .*a\.png has 8×8"):
        load(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "No such file or directory"),
        (
            {"a.png": b""},
            "holds image files but no class folders; put the images of each class into a folder of its own",
        ),
        ({"notes.txt": b""}, "holds no class folders"),
        ({"train/a.png": b"", "test/a.png": b""}, "test: holds image files but no class folders"),
        ({"train/.git/a.png": b"", "test/cat/a.png": b""}, "holds no class folders"),
        ({"cat/readme.txt": b""}, "holds no images"),
        ({"train/cat/a.png": b""}, "has train but no folder test or val"),
        ({"train/cat/a.png": b"", "test/dog/a.png": b""}, "'dog' does not exist in .*train"),
        ({"train/cat/a.png": b"", "test/cat/a.txt": b""}, "test: holds no images"),
    ],
)
def test_wrong_layouts(files, message, tmp_path, write_folder):
    root = tmp_path / "data"
    if files is not None:
        write_folder(root, files)
    with pytest.raises(InputError, match=message) as caught:
        load(f"folder:{root}")
    assert "\n" not in str(caught.value)
