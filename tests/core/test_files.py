"""Files: whole or not at all, and bad targets found before the work."""

import csv
import json
import math
import os
import threading

import pandas as pd
import pytest

from coprobe.core.files import (
    atomic,
    check_writable,
    check_writable_directory,
    exclusive,
    records,
    write_json,
    write_table,
)
from coprobe.core.text import storable
from coprobe.errors import InputError
from tests.nasty import NASTY

ROWS = [
    {"name": "a", "count": 3, "value": 0.1 + 0.2, "tiny": 1.2345678901234567e-18},
    {"name": "b, \"ü\"", "count": -1, "value": float("nan"), "tiny": 5e-324},
    {"name": "c\nd", "count": 0, "value": 1 / 3, "tiny": -1e300},
]  # fmt: skip


@pytest.fixture
def frame():
    made = pd.DataFrame(ROWS)
    made.attrs = {"seed": 7, "nodes": ["A", "B"], "nothing": None}
    return made


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_atomic_replaces_whole_and_makes_folders(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    for text in ("first", "second"):
        with atomic(path) as temporary:
            assert (temporary.parent, temporary.suffix) == (path.parent, ".txt")
            temporary.write_text(text)
        assert path.read_text() == text
    assert names(path.parent) == ["a.txt"]


def test_a_failure_inside_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_block_that_writes_nothing_is_an_error_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), atomic(path):
        pass
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with atomic(tmp_path / "a.txt") as one, atomic(tmp_path / "a.txt") as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "a.txt").read_text() == "one"


def test_a_name_of_the_greatest_length_can_be_written(tmp_path):
    path = tmp_path / f"{'x' * 250}.json"
    write_json(path, {})
    assert names(tmp_path) == [path.name]


def test_an_error_of_the_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(tmp_path / "a.json", {"a": 1})
    assert names(tmp_path) == []


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".json"])
def test_tables_are_read_again_exactly_with_their_provenance(tmp_path, frame, suffix):
    write_table(frame, tmp_path / f"t{suffix}")
    if suffix == ".parquet":
        read = pd.read_parquet(tmp_path / "t.parquet")
        about = read.attrs
    elif suffix == ".csv":
        read = pd.read_csv(tmp_path / "t.csv", engine="python")
        about = json.loads((tmp_path / "t.provenance.json").read_text())
    else:
        about = json.loads((tmp_path / "t.json").read_text())
        read = pd.DataFrame(about.pop("rows"))
    pd.testing.assert_frame_equal(read, pd.DataFrame(ROWS), check_exact=True)
    assert about == {"seed": 7, "nodes": ["A", "B"], "nothing": None}


def test_a_csv_without_provenance_stands_alone(tmp_path):
    write_table(pd.DataFrame(ROWS), tmp_path / "t.csv")
    assert names(tmp_path) == ["t.csv"]


def test_records_are_strict_json_and_exact(frame):
    frame.loc[0, "value"] = math.inf
    given = json.loads(json.dumps(records(frame), allow_nan=False))
    assert [row["value"] for row in given] == [None, None, 1 / 3]
    assert [row["tiny"] for row in given] == [row["tiny"] for row in ROWS]
    assert given[1]["name"] == ROWS[1]["name"] and given[1]["count"] == -1


def test_json_refuses_what_json_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["t.xls", "t", "t.CSV", "t.json.gz"])
def test_another_suffix_is_refused(tmp_path, frame, name):
    with pytest.raises(InputError, match=r"must end in \.parquet or \.csv or \.json"):
        write_table(frame, tmp_path / name)
    assert names(tmp_path) == []


def test_targets_that_can_be_written_leave_nothing_behind(tmp_path):
    target = tmp_path / "not" / "yet" / "a.csv"
    assert check_writable(target, (".csv",)) == target
    assert check_writable_directory(target.parent) == target.parent
    assert names(tmp_path) == []


def test_relative_targets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check_writable("a.csv", (".csv",)).name == "a.csv"
    check_writable("new/a.csv", (".csv",))
    assert names(tmp_path) == []


def test_targets_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for bad in ("file", "file/deep/er", "link", "link/deep"):
        with pytest.raises(InputError, match=r"(file|link): is not a directory; choose another"):
            check_writable_directory(tmp_path / bad)
    with pytest.raises(InputError, match="is a directory; name a file"):
        check_writable(tmp_path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(InputError, match="can't write there"):
        check_writable(tmp_path / "locked" / "new" / "a.csv")


def test_one_at_a_time_works_in_a_directory(tmp_path):
    began, ended = threading.Event(), threading.Event()

    def wait():
        began.set()
        with exclusive(tmp_path / "new"):
            ended.set()

    other = threading.Thread(target=wait)
    with exclusive(tmp_path / "new"), exclusive(tmp_path / "another"):
        other.start()
        assert began.wait(5) and not ended.wait(0.2)
    other.join(5)
    assert ended.is_set()


def test_a_directory_is_free_again_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), exclusive(tmp_path):
        raise ZeroDivisionError
    with exclusive(tmp_path):
        assert names(tmp_path) == [".lock"]
    assert names(tmp_path) == []


def test_who_does_not_wait_is_told(tmp_path):
    with exclusive(tmp_path):
        with (
            pytest.raises(InputError, match="another process works there; wait for it"),
            exclusive(tmp_path, wait=False),
        ):
            raise AssertionError("two at once")
        assert names(tmp_path) == [".lock"]
    with exclusive(tmp_path, wait=False):
        pass


@pytest.mark.skipif(os.name != "posix", reason="no such locks")
def test_many_that_make_and_remove_the_lock_are_one_at_a_time(tmp_path):
    inside, most, done = [], [], []

    def work():
        for _ in range(20):
            with exclusive(tmp_path / "run"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()
        done.append(1)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(done) == 6 and set(most) == {1} and names(tmp_path / "run") == []


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_have_the_permissions_that_the_person_wants(tmp_path, frame, umask):
    before = os.umask(umask)
    try:
        with exclusive(tmp_path / "run"):
            for name in ("t.csv", "t.json", "t.parquet"):
                write_table(frame, tmp_path / "run" / name)
            made = [*(tmp_path / "run").iterdir()]
    finally:
        os.umask(before)
    made = [path for path in made if path.name != ".lock"]
    assert len(made) == 4
    assert {path.stat().st_mode & 0o777 for path in made} == {0o666 & ~umask}
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o777 & ~umask


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".json"])
@pytest.mark.parametrize("name", NASTY, ids=lambda name: ascii(name[:30]))
def test_any_name_can_be_written_and_only_lone_surrogates_are_changed(tmp_path, suffix, name):
    made = pd.DataFrame({"n": [1, 2]})
    made["name"] = pd.Series([name, "b"], dtype=object)
    made.attrs = {"of": name}
    write_table(made, tmp_path / f"t{suffix}")
    if suffix == ".parquet":
        read = pd.read_parquet(tmp_path / "t.parquet")
        assert (list(read["name"]), read.attrs) == ([storable(name), "b"], {"of": name})
    elif suffix == ".csv":
        with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
            assert [row["name"] for row in csv.DictReader(file)] == [storable(name).replace("\r", r"\r"), "b"]
        assert json.loads((tmp_path / "t.provenance.json").read_text())["of"] == name
    else:
        about = json.loads((tmp_path / "t.json").read_text())
        assert ([row["name"] for row in about["rows"]], about["of"]) == ([name, "b"], name)


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("real/file.txt")
    for content in ("made", "replaced"):
        with atomic(tmp_path / "one") as temporary:
            temporary.write_text(content)
        assert (tmp_path / "real" / "file.txt").read_text() == content
        assert (tmp_path / "one").is_symlink()
        assert (tmp_path / "two").is_symlink()
    assert check_writable(tmp_path / "one") == tmp_path / "one"


def test_a_link_that_leads_nowhere_to_write(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "through").symlink_to(tmp_path / "file" / "deep" / "er")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(InputError, match="file: is not a directory; choose another output directory"):
        check_writable(tmp_path / "through")
    with pytest.raises(InputError, match=r"circle: can't write there .*; choose another name"):
        check_writable(tmp_path / "circle")
    with pytest.raises(OSError, match="circle"), atomic(tmp_path / "circle") as temporary:
        temporary.touch()
