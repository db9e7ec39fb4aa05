"""Small files that claim or become a lot, read in one child process whose memory is watched."""

import json
import struct
import subprocess
import sys
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coprobe.data.bounds import cause, check_growth, listed, short
from coprobe.errors import InputError

ALLOWED_MIB = 1024
"""Half of what the wide rows would take. Their peak is mostly 337 MiB, and at times 577, since Arrow's allocator keeps
what was freed; an image of 4096×4096 takes 48 MiB for each of its forms, 235 MiB in all."""

CHILD = """
import json, sys
import PIL.Image, pyarrow.parquet
from coprobe.data import load
from coprobe.errors import InputError

def peak():  # getrusage would count what the parent had when it forked
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

before, found = peak(), {}
for spec in sys.argv[1:]:
    try:
        message = repr(load(spec).image_shape)
    except InputError as error:
        message = str(error)
    found[spec] = [message, peak() - before]
print(json.dumps(found))
"""


def png(width, height, pixels):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def webp(width, height):
    def chunk(kind, data):
        return kind + struct.pack("<I", len(data)) + data

    canvas = chunk(b"VP8X", bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little"))
    body = b"WEBP" + canvas + chunk(b"VP8L", b"\x2f" + bytes(9))
    return b"RIFF" + struct.pack("<I", len(body)) + body


def zeros(size):
    packer = zlib.compressobj()
    return b"".join(packer.compress(bytes(2**20)) for _ in range(size // 2**20 + 1)) + packer.flush()


def many_rows(path):
    rows = 20_000_001
    images = pa.nulls(rows, pa.struct([("bytes", pa.binary())]))
    pq.write_table(pa.table({"img": images, "label": np.zeros(rows, np.int8)}), path, row_group_size=rows)


def wide_rows(path):
    image = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array([b"x" * 10**6]))
    structs = pa.StructArray.from_arrays([image], ["bytes"])
    pq.write_table(pa.table({"img": structs, "label": [0] * 2000}), path, store_schema=False)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.procs
def test_memory_of_bombs(tmp_path):
    black = zeros(4096 * 12_289)
    expected = {}
    for name, image, message in (
        ("claim.png", png(60_000, 60_000, zlib.compress(b"")), "more than 16777216 pixels; make it smaller"),
        ("silent.png", png(8900, 8900, black), "8900×8900 pixels, more than 16777216; make it smaller"),
        ("canvas.webp", webp(16_383, 16_383), "more than 16777216 pixels; make it smaller"),
        ("surplus.png", png(64, 64, black), "(3, 64, 64)"),
        ("largest.png", png(4096, 4096, black), "(3, 4096, 4096)"),
    ):
        path = tmp_path / name / "cat" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(image)
        expected[f"folder:{tmp_path / name}"] = message
    for make, message in ((many_rows, "20000001 rows, more than 20000000"), (wide_rows, "2000 of 2000 images are bad")):
        path = tmp_path / f"{make.__name__}.parquet"
        make(path)
        assert path.stat().st_size < 200_000
        expected[f"parquet:{path}"] = message
    done = subprocess.run([sys.executable, "-c", CHILD, *expected], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    for spec, message in expected.items():
        assert message in found[spec][0]
    assert 0 < max(peak for _, peak in found.values()) < ALLOWED_MIB, found


def test_growth():
    check_growth("x", 10, 64 * 2**20)
    check_growth("x", 2**30, 20 * 2**30)
    for packed, unpacked in ((10, 64 * 2**20 + 1), (2**30, 20 * 2**30 + 1)):
        with pytest.raises(InputError, match=f"x: {packed} bytes that unpack to {unpacked} or more"):
            check_growth("x", packed, unpacked)


def test_names_in_messages():
    assert cause("a" * 81) == "a" * 79 + "…"
    assert cause(OSError("one\ntwo")) == "one"
    assert cause(OSError()) == "OSError"
    assert short("\x1b[31m\n") == r"\x1b[31m\n"
    assert listed(["a", "b", "c", "d"]) == "'a', 'b', 'c', …"
    assert listed(("a\ud800",)) == r"'a\ud800'"
