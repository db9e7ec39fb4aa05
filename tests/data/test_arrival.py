"""Images that are decoded beside the work are those that are decoded before it, and nobody sees one too early."""

import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from coprobe.data import Reader, load
from coprobe.data import gather as gathering
from coprobe.errors import InputError
from coprobe.metrics import questions
from coprobe.probe import Probe
from tests.toys import EPSILON, Overfitted, checkpoint

COUNT = 9
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.fixture
def gate(monkeypatch):
    """A semaphore from which the decoder takes one for each image; it is wide open in the end."""
    passes, decode = threading.Semaphore(0), gathering.decode

    def held_back(source, where):
        assert passes.acquire(timeout=60), "nobody lets this image through"
        return decode(source, where)

    monkeypatch.setattr(gathering, "decode", held_back)
    yield passes
    passes.release(1000)
    for thread in decoders():
        thread.join(60)


@pytest.fixture
def spec(tmp_path, pictures, encode, write_parquet):
    """Nine images, of which one may be bad, as Parquet."""

    def write(bad=None):
        images = [b"<html>" if i == bad else encode(image) for i, image in enumerate(pictures(COUNT, 6, 5))]
        return f"parquet:{write_parquet(tmp_path / 'a.parquet', images, [i % 2 for i in range(COUNT)])}"

    return write


@pytest.fixture
def ten_classes(tmp_path, pictures, encode, write_parquet):
    """Ninety-six images of ten classes, of which one may be bad, as Parquet."""

    def write(bad=None):
        images = [b"<html>" if i == bad else encode(image) for i, image in enumerate(pictures(96))]
        return f"parquet:{write_parquet(tmp_path / 'd.parquet', images, [i % 10 for i in range(96)])}"

    return write


def decoders():
    return [thread for thread in threading.enumerate() if thread.name == "coprobe-decoder"]


def by_and_by(gate, spec, **options):
    """What `load` returns at the first image, and what it returns when all are there."""
    gate.release(COUNT)
    whole = load(spec, cache=False, **options)
    gate.release(1)
    data = load(spec, cache=False, ahead=True, **options)
    assert not data.has_arrived
    return data, whole


def test_each_image_can_be_had_as_soon_as_it_is_there(gate, spec):
    data, whole = by_and_by(gate, spec())
    assert (len(data), data.image_shape, data.notes) == (COUNT, (3, 6, 5), whole.notes)
    assert torch.equal(data.labels, whole.labels)
    for i in range(COUNT):
        assert torch.equal(data.part(i, i + 1), whole.images[i : i + 1])
        assert torch.equal(data.subset([i, 0]).images, whole.images[[i, 0]])
        gate.release(1)
    assert torch.equal(data.images, whole.images)
    assert data.digest() == whole.digest()
    assert data.has_arrived
    assert torch.equal(data.part(2, 5), whole.images[2:5])
    assert torch.equal(replace(data, name="other").images, whole.images)


@pytest.mark.parametrize("ask", [lambda data: data.images, lambda data: data.digest(), lambda data: data.part(7, 9),
                                 lambda data: data.subset([8]), lambda data: data.wait()])  # fmt: skip
def test_who_asks_for_what_is_not_there_waits(ask, gate, spec):
    data, _ = by_and_by(gate, spec())
    answers = []
    thread = threading.Thread(target=lambda: answers.append(ask(data)))
    thread.start()
    gate.release(COUNT - 2)
    thread.join(0.1)
    assert thread.is_alive() and not answers
    gate.release(1)
    thread.join(60)
    assert len(answers) == 1


@pytest.mark.parametrize("limit", [None, 1, 4])
def test_a_prefix(limit, gate, spec):
    gate.release(1000)
    whole, data = (load(spec(), limit=limit, cache=False, ahead=ahead) for ahead in (False, True))
    assert torch.equal(data.images, whole.images) and torch.equal(data.labels, whole.labels)
    assert data.digest() == whole.digest()


@pytest.mark.parametrize("bad", [1, 4, COUNT - 1])
def test_a_bad_image_is_refused_where_it_is_needed(bad, gate, spec):
    spec = spec(bad)
    gate.release(COUNT)
    with pytest.raises(InputError) as refused:
        load(spec)
    gate.release(1)
    data = load(spec, ahead=True)
    gate.release(COUNT)
    for ask in (lambda: data.part(bad, bad + 1), lambda: data.part(0, 1), lambda: data.images, data.digest, data.wait):
        with pytest.raises(InputError) as caught:
            ask()
        assert str(caught.value) == str(refused.value) and f"row {bad}: not an image" in str(refused.value)


def test_bad_images_are_counted_to_the_end(gate, tmp_path, pictures, encode, write_parquet):
    images = [b"<html>" if i in (2, 5, 8) else encode(image) for i, image in enumerate(pictures(COUNT))]
    path = write_parquet(tmp_path / "b.parquet", images, [0] * COUNT)
    gate.release(1)
    data = load(f"parquet:{path}", ahead=True)
    gate.release(COUNT)
    with pytest.raises(InputError, match=r"row 2: not an image .*; 3 of 9 images are bad \(also b\.parquet row 5, "):
        data.part(2, 4)


def test_a_bad_first_image_and_what_the_memory_does_not_hold_are_refused_at_once(gate, spec, monkeypatch):
    gate.release(1000)
    with pytest.raises(InputError, match="row 0: not an image"):
        load(spec(0), ahead=True)
    sysconf = {"SC_PHYS_PAGES": 1, "SC_PAGE_SIZE": 500}
    monkeypatch.setattr("coprobe.data.bounds.os.sysconf", sysconf.__getitem__)
    with pytest.raises(InputError, match="the decoded images need"):
        load(spec(), ahead=True)


def test_another_size_later_on(gate, tmp_path, pictures, encode, write_parquet):
    images = [encode(pictures(1, 6, 5 + (i == 7))[0]) for i in range(COUNT)]
    path = write_parquet(tmp_path / "c.parquet", images, [0] * COUNT)
    gate.release(1)
    data = load(f"parquet:{path}", ahead=True)
    gate.release(COUNT)
    with pytest.raises(InputError, match=r"row 7: 6×6 pixels, but .* row 0 has 5×6"):
        data.part(7, 8)


def test_with_bad_images_left_out_all_are_waited_for(gate, spec):
    gate.release(COUNT)
    data = load(spec(4), skip_bad=True, ahead=True)
    assert data.has_arrived and len(data) == COUNT - 1 and decoders() == []


def test_the_copy_is_kept_and_mapped_the_next_time(gate, spec, tmp_path, monkeypatch):
    monkeypatch.setattr("coprobe.data.decoded.SMALLEST", 0)
    monkeypatch.setattr("coprobe.data.decoded.SETTLED", -(10**11))
    spec, root = spec(), tmp_path / "root"
    gate.release(COUNT)
    first = load(spec, root=root, ahead=True)
    digest = first.digest()
    again = load(spec, root=root, ahead=True)  # there is no pass left to decode with
    assert again.has_arrived and again.digest() == digest
    assert torch.equal(again.images, first.images)
    assert len(list((root / "decoded").iterdir())) == 1


@pytest.mark.parametrize("device", DEVICES)
def test_a_reader_waits_for_its_ranges_alone(device, gate, spec):
    data, whole = by_and_by(gate, spec())
    with Reader(data, device) as read:
        for start in range(0, COUNT, 3):
            gate.release(3 if start else 2)
            images, labels = read(start, start + 3)
            assert torch.equal(images, whole.images[start : start + 3].to(device).float().div_(255))
            assert torch.equal(labels, whole.labels[start : start + 3].to(device))


def test_what_stops_the_decoder_reaches_who_reads(gate, spec):
    gate.release(3)
    data = load(spec(5), ahead=True)
    with Reader(data) as read:
        assert len(read(0, 3)[0]) == 3
        gate.release(COUNT)
        with pytest.raises(InputError, match="row 5: not an image"):
            read(3, 6)


@pytest.mark.parametrize("kept", [False, True])
def test_attacks_begin_while_images_are_decoded(kept, gate, ten_classes, tmp_path):
    """Half of the images are not let through before the first batch is done."""
    spec = ten_classes()
    gate.release(96)
    whole = load(spec, cache=False)

    @contextmanager
    def progress(what, count):
        yield lambda done: gate.release(96)

    def measure(data, **settings):
        probe = Probe(checkpoint(Overfitted()), data, EPSILON, batch_size=16, **settings)
        return probe.ask(questions.accuracies(["fgsm"]), questions.activations(["A"]))

    gate.release(48)
    data = load(spec, cache=False, ahead=True)
    evaluation, statistics = measure(data, progress=progress, cache=tmp_path / "stats" if kept else None)
    wanted, also = measure(whole)
    assert evaluation.frame.equals(wanted.frame) and statistics.frame.equals(also.frame)
    assert evaluation.frame.attrs["data_digest"] == whole.digest()


def test_autoattack_begins_when_all_images_are_there(gate, ten_classes, attacks):
    gate.release(48)
    data = load(ten_classes(bad=95), ahead=True)
    probe, refused = Probe(checkpoint(Overfitted()), data, EPSILON, batch_size=16), []

    def evaluate():
        with pytest.raises(InputError) as caught:
            probe.evaluate(["apgd-ce"])
        refused.append(str(caught.value))

    thread = threading.Thread(target=evaluate)
    thread.start()
    thread.join(0.5)
    assert thread.is_alive()
    gate.release(48)
    thread.join(60)
    assert "row 95: not an image" in refused[0] and attacks == []


def test_a_program_that_ends_does_not_wait_for_the_rest(spec, tmp_path):
    program = (
        "import sys, time\n"
        "from coprobe.data import gather, load\n"
        "log, decode = open('log', 'w', 1), gather.decode\n"
        "gather.decode = lambda *image: (print(time.sleep(0.5), file=log), decode(*image))[1]\n"
        f"print(len(load({spec()!r}, ahead=True)))\n"
        "sys.exit(3)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, f"{COUNT}\n", "")
    assert 1 <= len((tmp_path / "log").read_text().splitlines()) < COUNT
