import numpy as np
import pytest

from coprobe.data import load
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
        ({"a.png": b""}, "any class folder"),
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
