"""Which files of a folder are one split, and that nothing of another set is pooled with them."""

import pytest

from coprobe.data import load
from coprobe.data.parquet_files import split_files
from coprobe.errors import InputError


def touched(root, files):
    for name in files.split():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize(
    ("files", "test", "left_out"),
    [
        ("test-0.parquet test-1.parquet train-0.parquet", "test-0.parquet test-1.parquet", ""),
        ("test-00000-of-00001.parquet test_augmented-00000-of-00001.parquet", "test-00000-of-00001.parquet",
         "test_augmented-00000-of-00001.parquet"),
        ("TEST-0.PARQUET Test_small.parquet", "TEST-0.PARQUET", "Test_small.parquet"),
        ("test-00000-of-00001-6a1f5b0c9d8e7f60.parquet", "test-00000-of-00001-6a1f5b0c9d8e7f60.parquet", ""),
        ("data/test-0.parquet data/train-0.parquet", "data/test-0.parquet", ""),
        ("default/test/0000.parquet default/test/0001.parquet default/train/0000.parquet",
         "default/test/0000.parquet default/test/0001.parquet", ""),
        ("snapshots/abc/data/validation-0.parquet snapshots/abc/data/train-0.parquet",
         "snapshots/abc/data/validation-0.parquet", ""),
        ("train-0.parquet valid/0.parquet", "valid/0.parquet", ""),
        ("val-0.parquet train_val-0.parquet", "val-0.parquet", ""),
        ("cifar_test-0.parquet cifar_train-0.parquet", "cifar_test-0.parquet", ""),
        ("test-0.parquet other/test-0.parquet", "test-0.parquet", ""),
        ("test.parquet .cache/test-0.parquet test-0.parquet.lock", "test.parquet", ""),
        ("test2.parquet", "test2.parquet", ""),
    ],
)  # fmt: skip
def test_one_set_is_chosen(files, test, left_out, tmp_path):
    found, notes = split_files(touched(tmp_path, files), "test")
    assert [str(file.relative_to(tmp_path)) for file in found] == test.split()
    assert notes == ((f"left out '{left_out}', which is of other sets",) if left_out else ())


@pytest.mark.parametrize(
    ("files", "train"),
    [
        ("pre_train-0.parquet train-0.parquet", "train-0.parquet"),
        ("train_val-0.parquet test-0.parquet", "train_val-0.parquet"),
        ("train-2.parquet train-10.parquet", "train-10.parquet train-2.parquet"),
    ],
)
def test_of_training_files(files, train, tmp_path):
    found, _ = split_files(touched(tmp_path, files), "train")
    assert [str(file.relative_to(tmp_path)) for file in found] == train.split()


@pytest.mark.parametrize(
    ("files", "split", "message"),
    [
        ("pre_train-0.parquet", "train", r"no train\*\.parquet for the train split; it holds pre_train-0\.parquet"),
        ("train_test-0.parquet", "test", r"no test\*\.parquet or val\*\.parquet for the test split"),
        ("a/test/0.parquet b/test/0.parquet", "test", r"sets .* \('a/test', 'b/test'\); name the folder of one"),
        ("plain/test-0.parquet noisy/test-0.parquet", "test", r"'noisy/test', 'plain/test'\); name the folder of one"),
        ("a_test.parquet b_test.parquet", "test", r"\('a_test', 'b_test'\); name one file, or move the others"),
        ("val-0.parquet validation-0.parquet", "test", r"several sets for the test split \('val', 'validation'\)"),
        ("test-00000-of-00002.parquet", "test", r"lacks shard 1 of 2 \('test-00000-of-00002\.parquet'\); download it"),
        ("test-00000-of-00001.parquet test-00000-of-00002.parquet test-00001-of-00002.parquet", "test",
         "shards of several divisions"),
        ("test-00000-of-00001-aaaaaaaaaaaaaaaa.parquet test-00000-of-00001-bbbbbbbbbbbbbbbb.parquet", "test",
         "shards of several divisions"),
        ("deep/down/in/the/test-0.parquet", "test", "it holds no Parquet file at all"),
    ],
)  # fmt: skip
def test_what_may_be_several_or_is_not_whole_is_refused(files, split, message, tmp_path):
    with pytest.raises(InputError, match=message):
        split_files(touched(tmp_path, files), split)


def test_only_the_images_of_the_set_are_read(tmp_path, pictures, write_parquet):
    write_parquet(tmp_path / "test-0.parquet", pictures(3), [0, 1, 1])
    write_parquet(tmp_path / "test_augmented-0.parquet", pictures(3, seed=1), [0, 1, 1])
    data = load(f"parquet:{tmp_path}")
    assert data.digest() == load(f"parquet:{tmp_path}/test-0.parquet").digest()
    assert data.notes == (f"parquet:{tmp_path} (test): left out 'test_augmented-0.parquet', which is of other sets",)


def test_shards_that_name_their_classes_differently_are_refused(tmp_path, pictures, write_parquet):
    write_parquet(tmp_path / "test-0.parquet", pictures(2), [0, 1], names=["cat", "dog"])
    write_parquet(tmp_path / "test-1.parquet", pictures(2), [0, 1], names=["dog", "cat"])
    with pytest.raises(InputError, match=r"'test-0\.parquet' and 'test-1\.parquet' name their classes differently"):
        load(f"parquet:{tmp_path}")


@pytest.mark.parametrize("names", [None, ["cat", "dog"]])
@pytest.mark.parametrize(("labels", "found"), [([-1, -1, -1], r"-1 \(3 images\)"), ([-1, -2, -1], "below 0")])
def test_labels_that_were_not_published(labels, found, names, tmp_path, pictures, write_parquet):
    write_parquet(tmp_path / "test-0.parquet", pictures(3), labels, names=names)
    with pytest.raises(InputError, match=rf"\(test\): all labels are {found}, so they were not published; choose"):
        load(f"parquet:{tmp_path}")
