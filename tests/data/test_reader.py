"""A reader gives what slicing gives, whatever it has read ahead."""

import gc
import subprocess
import sys
import threading
import weakref
from types import SimpleNamespace

import pytest
import torch

from coprobe.data import Dataset, Reader
from coprobe.data import reader as module
from coprobe.data.loader import place
from coprobe.errors import InputError

COUNT = 23
IN_ORDER = [(start, min(start + 5, COUNT)) for start in range(0, COUNT, 5)]
ORDERS = {
    "in order": IN_ORDER,
    "backwards": IN_ORDER[::-1],
    "the same again": [(0, 5), (0, 5), (5, 10), (5, 10)],
    "halves of what was read ahead": [(0, 8), (8, 12), (12, 16), (16, 23)],
    "gaps and overlaps": [(0, 5), (10, 15), (15, 20), (13, 18), (18, 23), (22, 23), (0, 23)],
    "one by one": [(i, i + 1) for i in range(4)],
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (COUNT, 3, 6, 5), dtype=torch.uint8, generator=generator)
    images.view(-1)[:256] = torch.arange(256)
    labels = torch.randint(0, 4, (COUNT,), generator=generator)
    return Dataset(images, labels, tuple("abcd"), "made", "train")


@pytest.fixture
def reads(monkeypatch):
    """Which ranges were read, and whether by the thread."""
    found = []
    read = Reader._read

    def recorded(self, start, stop):
        result = read(self, start, stop)
        found.append((start, stop, threading.current_thread() is not threading.main_thread()))
        return result

    monkeypatch.setattr(Reader, "_read", recorded)
    return found


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("coprobe-reader")]


def assert_right(data, result, start, stop, device="cpu"):
    images, labels = result
    assert images.device.type == labels.device.type == device
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert images.is_contiguous()
    assert torch.equal(images, data.images[start:stop].to(device).float().div_(255))
    assert torch.equal(labels, data.labels[start:stop].to(device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("share", [0.0, 0.1])
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_every_range_is_that_of_the_data_set(order, ahead, share, device, data, monkeypatch):
    monkeypatch.setattr(module, "SHARE", share)
    with Reader(data, device, ahead) as reader:
        for start, stop in order:
            assert_right(data, reader(start, stop), start, stop, device)


def test_images_of_any_layout_come_contiguous(data):
    turned = Dataset(data.images.transpose(2, 3), data.labels, data.classes, "made", "train")
    with Reader(turned) as reader:
        for start, stop in IN_ORDER:
            assert_right(turned, reader(start, stop), start, stop)


def test_the_next_range_is_read_by_the_thread(data, reads):
    with Reader(data) as reader:
        for start, stop in IN_ORDER:
            reader(start, stop)
    assert sorted(reads) == [(0, 5, False), (5, 10, True), (10, 15, True), (15, 20, True), (20, 23, True)]


def test_out_of_order_is_read_directly(data, reads):
    with Reader(data) as reader:
        reader(0, 5)
        reader(15, 20)
    assert {read for read in reads if not read[2]} == {(0, 5, False), (15, 20, False)}
    assert {read for read in reads if read[2]} <= {(5, 10, True), (20, 23, True)}


def test_not_ahead_there_is_no_thread(data, reads):
    with Reader(data, ahead=False) as reader:
        reader(0, 5)
        reader(5, 10)
        assert threads() == []
    assert reads == [(0, 5, False), (5, 10, False)]


def test_nothing_is_kept_of_ranges_that_are_done_with(data):
    alive = weakref.WeakSet()
    with Reader(data) as reader:
        for start, stop in IN_ORDER:
            alive.add(reader(start, stop)[0])
            assert len(alive) <= 1
    assert len(alive) == 0


def test_an_error_of_the_thread_reaches_the_caller_who_may_go_on(data, monkeypatch):
    read = Reader._read
    failing = {(5, 10): 1}

    def fail(self, start, stop):
        if failing.pop((start, stop), 0):
            raise OSError(5, "Input/output error")
        return read(self, start, stop)

    monkeypatch.setattr(Reader, "_read", fail)
    with Reader(data) as reader:
        assert_right(data, reader(0, 5), 0, 5)
        with pytest.raises(OSError, match="Input/output error"):
            reader(5, 10)
        assert_right(data, reader(5, 10), 5, 10)
        assert_right(data, reader(10, 15), 10, 15)


def test_an_error_in_a_range_that_nobody_asks_for_is_nobodys(data, monkeypatch):
    read = Reader._read
    monkeypatch.setattr(Reader, "_read", lambda self, start, stop: read(self, start, stop) if start != 5 else 1 / 0)
    with Reader(data) as reader:
        reader(0, 5)
        assert_right(data, reader(10, 15), 10, 15)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 3), (4, 2), (20, 24), (23, 24)])
def test_no_such_range(start, stop, data):
    with Reader(data) as reader, pytest.raises(InputError, match=f"^made: has no images {start} to {stop - 1}, only 0"):
        reader(start, stop)


def test_one_thread_that_ends_with_the_block_or_by_close(data):
    with Reader(data) as reader:
        for start, stop in ORDERS["gaps and overlaps"]:
            reader(start, stop)
            assert len(threads()) == 1
    assert threads() == []
    assert_right(data, reader(0, 5), 0, 5)
    assert threads() == []
    reader.close()


def test_the_thread_ends_with_the_reader(data):
    reader = Reader(data)
    reader(0, 5)
    (thread,) = threads()
    del reader
    gc.collect()
    thread.join(30)
    assert not thread.is_alive()


def test_an_open_reader_does_not_keep_the_program(tmp_path):
    program = (
        "import torch; from coprobe.data import Dataset, Reader\n"
        "zeros = torch.zeros(9, 1, 2, 2, dtype=torch.uint8), torch.zeros(9, dtype=torch.int64)\n"
        "reader = Reader(Dataset(*zeros, ('a',), 'made', 'test'))\n"
        "print(len(reader(0, 2)[0]))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "2\n", "")


def test_what_would_fill_the_gpu_stays_in_host_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    large, small = (SimpleNamespace(nbytes=size, to=lambda device: device.type) for size in (101, 100))
    assert place(large, torch.device("cuda"), 0.1) is large
    assert place(small, torch.device("cuda"), 0.1) == "cuda"
    assert place(large, torch.device("mps"), 0.1) == "mps"
