import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coprobe.data import load
from coprobe.data import parquet as module
from coprobe.errors import InputError


def test_files_row_groups_and_class_names(tmp_path, pictures, write_parquet):
    images = pictures(13)
    labels = [0, 1, 2] * 4 + [2]
    names = ["cat", "dog", "eel"]
    write_parquet(tmp_path / "train-00000-of-00002.parquet", images[:10], labels[:10], names=names)
    write_parquet(tmp_path / "train-00001-of-00002.parquet", images[10:], labels[10:], names=names)
    data = load(f"parquet:{tmp_path}", "train")
    assert data.labels.tolist() == labels
    assert data.classes == ("cat", "dog", "eel")
    assert np.array_equal(data.images.numpy(), images.transpose(0, 3, 1, 2))


def test_rows_of_the_second_file(tmp_path, pictures, write_parquet):
    images = pictures(10)
    write_parquet(tmp_path / "train-0.parquet", images[:6], [0] * 6)
    write_parquet(tmp_path / "train-1.parquet", images[6:], [0, 1, 1, 1])
    data = load(f"parquet:{tmp_path}", "train", limit=4)
    assert np.array_equal(data.images.numpy(), images[[0, 1, 7, 8]].transpose(0, 3, 1, 2))


def test_only_wanted_rows_are_decoded(tmp_path, pictures, write_parquet, monkeypatch):
    monkeypatch.setattr(module, "IMAGES_AT_ONCE", 3)
    images = list(pictures(20))
    labels = [0] * 10 + [1] * 10
    broken = [image if i % 10 < 6 else b"broken" for i, image in enumerate(images)]
    path = write_parquet(tmp_path / "data.parquet", broken, labels, groups=7)
    data = load(f"parquet:{path}", limit=12)
    chosen = [*range(6), *range(10, 16)]
    assert np.array_equal(data.images.numpy(), np.stack(images)[chosen].transpose(0, 3, 1, 2))
    with pytest.raises(InputError, match=r"data\.parquet row 6: not an image"):
        load(f"parquet:{path}", limit=13)


@pytest.mark.parametrize(
    ("files", "split", "chosen"),
    [
        (["train-0", "test-0", "validation-0"], "test", "test-0"),
        (["train-0", "validation-0"], "test", "validation-0"),
        (["train-0", "valid"], "test", "valid"),
        (["cifar_val", "Train"], "train", "Train"),
        (["latest", "my-test"], "test", "my-test"),
    ],
)
def test_split_files(files, split, chosen, tmp_path, pictures, write_parquet):
    for seed, name in enumerate(files):
        write_parquet(tmp_path / f"{name}.parquet", pictures(2, seed=seed), [0, 1])
    found = load(f"parquet:{tmp_path}", split)
    assert found.digest() == load(f"parquet:{tmp_path / chosen}.parquet", split).digest()


@pytest.mark.parametrize("label", ["label", "fine_label", "labels"])
def test_column_names_and_numbered_classes(label, tmp_path, pictures, write_parquet):
    path = write_parquet(tmp_path / "a.parquet", pictures(3), [0, 4, 1], image="image", label=label)
    assert load(f"parquet:{path}").classes == ("0", "1", "2", "3", "4")


@pytest.mark.parametrize("metadata", ["not json", "[]", '{"info": null}', json.dumps({"info": {"features": {}}})])
def test_useless_metadata_is_ignored(metadata, tmp_path, pictures, write_parquet):
    path = write_parquet(tmp_path / "a.parquet", pictures(2), [0, 1])
    table = pq.read_table(path).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, path)
    assert load(f"parquet:{path}").classes == ("0", "1")


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 5, 1], ["cat", "dog"], "row 1 has label 5; with 2 classes"),
        ([0, 1, -1], None, "row 2 has label -1"),
        ([0, None, 1], ["cat", "dog"], "row 1 has no label"),
        ([0, 10**9, 1], None, "row 1 has label 1000000000; more than 100000 classes"),
        ([0, 2**63, 1], None, "column 'label' holds more than 9223372036854775807; labels count from 0"),
        ([0.0, 1.0, 2.0], None, "column 'label' is double; integers are needed"),
        (["cat", "dog", "cat"], None, "column 'label' is string; integers are needed"),
    ],
)
def test_bad_labels(labels, names, message, tmp_path, pictures, write_parquet):
    column = pa.array(labels, pa.uint64()) if labels[1] == 2**63 else labels
    path = write_parquet(tmp_path / "a.parquet", pictures(3), column, names=names)
    with pytest.raises(InputError, match=message):
        load(f"parquet:{path}")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"text": ["a"], "label": [0]}, r"has the columns text, label; an image column \(img or image\)"),
        ({"img": [{"bytes": b""}], "target": [0]}, "a label column"),
        ({"img": [b"x"], "label": [0]}, "column 'img' is binary; a struct"),
        ({"img": [{"path": "x"}], "label": [0]}, "column 'img' is struct<path: string>"),
        ({"img": [{"bytes": 1}], "label": [0]}, "column 'img' is struct<bytes: int64>"),
    ],
)
def test_wrong_schema(table, message, tmp_path):
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=message):
        load(f"parquet:{tmp_path / 'a.parquet'}")


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_cut_file(share, tmp_path, pictures, write_parquet):
    path = write_parquet(tmp_path / "a.parquet", pictures(3), [0, 1, 2])
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"a\.parquet: not a whole Parquet file") as caught:
        load(f"parquet:{path}")
    assert "\n" not in str(caught.value)


def test_damaged_page(tmp_path, pictures, encode, write_parquet):
    path = write_parquet(tmp_path / "a.parquet", pictures(3), [0, 1, 2])
    # Statistics would repeat an image outside its page, where no checksum covers it.
    plain = {"use_dictionary": False, "compression": "none", "write_statistics": False}
    pq.write_table(pq.read_table(path), path, write_page_checksum=True, **plain)
    data = bytearray(path.read_bytes())
    at = data.index(encode(pictures(3)[1])) + 60
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.parquet: not a whole Parquet file"):
        load(f"parquet:{path}")


def test_a_single_file_serves_as_either_split(tmp_path, pictures, write_parquet):
    path = write_parquet(tmp_path / "test.parquet", pictures(2), [0, 1])
    assert load(f"parquet:{path}").notes == (
        f"parquet:{path} (test): is a single file, so the same images serve as either split",
    )
    assert load(f"parquet:{tmp_path}").notes == ()


def test_skipped_rows(tmp_path, pictures, write_parquet):
    images = list(pictures(8))
    broken = [None, images[1], b"<html>", *images[3:]]
    path = write_parquet(tmp_path / "a.parquet", broken, [0, 0, 1, 1] * 2)
    with pytest.raises(
        InputError, match=r"a\.parquet row 0: the image has no bytes; 2 of 8 images are bad \(also a\.par"
    ):
        load(f"parquet:{path}")
    data = load(f"parquet:{path}", limit=4, skip_bad=True)
    assert np.array_equal(data.images.numpy(), np.stack(images)[[1, 3, 4, 6]].transpose(0, 3, 1, 2))
    assert data.skipped == (f"{path} row 0", f"{path} row 2")


def test_names_of_any_signs_and_of_any_kind(tmp_path, pictures, write_parquet):
    names = ["\x1b[31m", "\ud800"]
    path = write_parquet(tmp_path / "a.parquet", pictures(2), [0, 1], names=names)
    assert load(f"parquet:{path}").classes == tuple(names)
    path = write_parquet(tmp_path / "b.parquet", pictures(2), [0, 1], names=[["nested"], None])
    assert load(f"parquet:{path}").classes == ("0", "1")
    path = write_parquet(tmp_path / "c.parquet", pictures(2), [0, 1], names=["x"] * 100_001)
    with pytest.raises(InputError, match="names 100001 classes; more than 100000"):
        load(f"parquet:{path}")


def test_a_footer_that_contradicts_itself(tmp_path, pictures, write_parquet):
    path = write_parquet(tmp_path / "a.parquet", pictures(3), [0, 1, 1], groups=100)
    data = bytearray(path.read_bytes())
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    # In thrift's compact protocol the file's number of rows is the field after the schema: an i64, 3 zigzagged.
    at = data.index(b"\x16\x06\x19", footer)
    data[at + 1] = 0x0A
    path.write_bytes(data)
    with pytest.raises(InputError, match="its footer contradicts itself about the number of rows"):
        load(f"parquet:{path}")


def test_a_row_group_that_grows_too_much(tmp_path, write_parquet, monkeypatch):
    monkeypatch.setattr("coprobe.data.bounds.FREE_GROWTH", 2**20)
    path = write_parquet(tmp_path / "a.parquet", [bytes(2**21)], [0])
    pq.write_table(pq.read_table(path), path, compression="zstd")
    with pytest.raises(InputError, match=r"a\.parquet: \d+ bytes that unpack to 2\d+ or more"):
        load(f"parquet:{path}")


def test_wide_rows_are_read_few_at_a_time(tmp_path, pictures, write_parquet, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", pictures(6), [0, 1] * 3, groups=100)
    size = pq.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size
    batches, read = [], pq.ParquetFile.iter_batches

    def iter_batches(self, rows, **which):
        batches.append((which["columns"], rows))
        return read(self, rows, **which)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    for allowed, rows in ((2 * size, 2), (1, 1)):
        monkeypatch.setattr(module, "BYTES_AT_ONCE", allowed)
        assert len(load(f"parquet:{path}", cache=False)) == 6
        assert batches.pop() == (["img.bytes"], rows)


def test_image_without_bytes(tmp_path, pictures, write_parquet):
    path = write_parquet(tmp_path / "a.parquet", [*pictures(5), None], [0] * 6)
    with pytest.raises(InputError, match=r"a\.parquet row 5: the image has no bytes"):
        load(f"parquet:{path}")


def test_empty_absent_and_too_long(tmp_path, pictures, write_parquet, monkeypatch):
    empty = write_parquet(tmp_path / "test.parquet", [], pa.array([], pa.int64()))
    with pytest.raises(InputError, match="holds no images"):
        load(f"parquet:{empty}")
    with pytest.raises(InputError, match=r"no train\*\.parquet for the train split; it holds test\.parquet"):
        load(f"parquet:{tmp_path}", "train")
    with pytest.raises(InputError, match="no such file or folder"):
        load(f"parquet:{tmp_path / 'absent'}")
    monkeypatch.setattr(module, "MAX_ROWS", 2)
    long = write_parquet(tmp_path / "long.parquet", pictures(3), [0, 1, 2])
    with pytest.raises(InputError, match="3 rows, more than 2"):
        load(f"parquet:{long}")
