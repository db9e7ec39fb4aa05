import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from coprobe.data import decode as module
from coprobe.data.decode import decode, decode_all
from coprobe.errors import InputError


def png(width, height, rows=None, *, depth=8, colour=2, interlaced=0, raw=None):
    """A PNG of grey 128 that holds `rows` rows, whatever its header says."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    channels = {0: 1, 2: 3}[colour]
    row = b"\0" + b"\x80" * (width * channels * depth // 8)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    pixels = zlib.compress(row * (height if rows is None else rows) if raw is None else raw)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_rgb_png_is_exact_from_bytes_and_path(pictures, encode, tmp_path):
    array = pictures(1, 5, 7)[0]
    assert np.array_equal(decode(encode(array), "x"), array)
    (tmp_path / "a.png").write_bytes(encode(array))
    assert np.array_equal(decode(tmp_path / "a.png", "x"), array)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_other_modes_become_rgb(mode, pictures):
    image = Image.fromarray(pictures(1)[0]).convert(mode)
    assert np.array_equal(decode(saved(image, "PNG"), "x"), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_becomes_rgb():
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red, green, blue = decode(saved(image, "JPEG"), "x")[4, 4]
    assert red > 240
    assert max(green, blue) < 16


def test_interlaced_png():
    # Each of the 2×1 pixels is a pass and a row of its own: 8 bytes, where 7 would do without passes.
    assert decode(png(2, 1, interlaced=1, raw=b"\0\x80\x80\x80" * 2), "x").tolist() == [[[128] * 3] * 2]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_cut_images_are_refused(kind, share, pictures, encode):
    data = encode(pictures(1, 64, 64)[0], kind)
    with pytest.raises(InputError, match=r"^here: (damaged|not an image)"):
        decode(data[: int(len(data) * share)], "here")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<!DOCTYPE html><html><body>Log in</body></html>", "not an image"),
        (b"", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "not an image"),
        (png(8, 8, rows=7), "fewer rows than its header says"),
        (png(4097, 4096, rows=1), "4097×4096 pixels, more than 16777216"),
        (png(60_000, 60_000, rows=1), "more than 16777216"),
        (png(10_000, 10_000, rows=1), "more than 16777216"),
        (png(8, 8, depth=16, colour=0), "mode I;16; save it with 8 bits"),
    ],
)
def test_refused(data, message):
    with pytest.raises(InputError, match=f"^here: .*{message}"):
        decode(data, "here")


def test_wrong_png_checksum(pictures, encode):
    data = bytearray(encode(pictures(1)[0]))
    data[-20] ^= 1  # the last bytes of the pixels: their checksum, a CRC of 4, and IEND's 12
    with pytest.raises(InputError, match="here: damaged image"):
        decode(bytes(data), "here")


def test_animation_is_refused(pictures):
    first, second = (Image.fromarray(array) for array in pictures(2))
    data = saved(first, "PNG", save_all=True, append_images=[second])
    with pytest.raises(InputError, match="here: holds several frames"):
        decode(data, "here")


def test_missing_and_oversized_files(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"here: .*No such file"):
        decode(tmp_path / "absent.png", "here")
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    (tmp_path / "large.png").write_bytes(png(8, 8))
    with pytest.raises(InputError, match="here: larger than 10 bytes"):
        decode(tmp_path / "large.png", "here")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damage_anywhere_is_an_input_error_or_an_image(pictures, encode):
    """Every exception that a decoder raises on a flipped byte has to be one that `decode` expects."""
    generator = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM"):
        whole = np.frombuffer(encode(pictures(1)[0], kind), dtype=np.uint8)
        for _ in range(100):
            data = whole.copy()
            data[generator.integers(0, min(len(data), 300))] = generator.integers(0, 256)
            try:
                assert decode(data.tobytes(), "here").dtype == np.uint8
            except InputError as error:
                assert str(error).startswith("here: ")


def test_decode_all_stacks_as_channels_first(pictures, encode):
    arrays = pictures(3, 5, 7)
    stacked = decode_all(((encode(array), "x") for array in arrays), 3)
    assert stacked.dtype == torch.uint8
    assert np.array_equal(stacked.numpy(), arrays.transpose(0, 3, 1, 2))


def test_decode_all_names_the_first_of_another_size(pictures, encode):
    items = [(encode(pictures(1, 5, 7)[0]), "one"), (encode(pictures(1, 7, 5)[0]), "two")]
    with pytest.raises(InputError, match="two: 5×7 pixels, but one has 7×5"):
        decode_all(iter(items), 2)


def test_paths_may_be_given(tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(png(2, 2))
    assert decode_all([(path, "a")], 1).shape == (1, 3, 2, 2)
