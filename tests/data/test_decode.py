import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from coprobe.data import decode as module
from coprobe.data.decode import BadImageError, strict
from coprobe.errors import InputError


def decode(source, where):
    """Decode as `decode_images` does."""
    with strict():
        return module.decode(source, where)


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


@pytest.mark.parametrize("mode", ["P", "RGBA"])
def test_other_modes_become_rgb(mode, pictures):
    image = Image.fromarray(pictures(1)[0]).convert(mode)
    assert np.array_equal(decode(saved(image, "PNG"), "x"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_images_keep_their_channel(mode, pictures):
    image = Image.fromarray(pictures(1)[0]).convert(mode)
    assert np.array_equal(decode(saved(image, "PNG"), "x"), np.asarray(image.convert("RGB"))[:, :, 0])


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF", "BMP", "PPM"])
def test_grey_images_of_other_formats(kind, pictures):
    data = saved(Image.fromarray(pictures(1)[0]).convert("L"), kind)
    decoded, expected = decode(data, "x"), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decoded, expected if kind == "WEBP" else expected[:, :, 0])  # WebP knows no grey


def test_a_palette_of_greys_is_grey(pictures):
    grey = pictures(1)[0][:, :, 0]
    image = Image.fromarray(grey).convert("P")  # as programs that make PNGs small write them
    assert image.mode == "P"
    assert np.array_equal(decode(saved(image, "PNG"), "x"), grey)


def test_the_first_of_a_phones_pictures_is_taken(pictures):
    first, second = (Image.fromarray(array) for array in pictures(2, 16, 16))
    data = saved(first, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert np.array_equal(decode(data, "x"), decode(saved(first, "JPEG"), "x"))


def test_cmyk_jpeg_becomes_rgb():
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red, green, blue = decode(saved(image, "JPEG"), "x")[4, 4]
    assert red > 240
    assert max(green, blue) < 16


def passes(width, height):
    """The rows of an interlaced grey-128 RGB PNG, pass by pass."""
    for left, top, across, down in module.PASSES:
        columns = len(range(left, width, across))
        yield from [b"\0" + b"\x80" * (3 * columns)] * len(range(top, height, down)) if columns else []


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 1), (1, 5), (5, 3), (9, 9), (16, 11)])
def test_interlaced_png(width, height):
    rows = list(passes(width, height))
    assert (decode(png(width, height, interlaced=1, raw=b"".join(rows)), "x") == 128).all()
    with pytest.raises(InputError, match=r"fewer rows|truncated"):
        decode(png(width, height, interlaced=1, raw=b"".join(rows[:-1])), "x")


def test_sixteen_bits_of_colour_lose_their_lower_half():
    assert decode(png(2, 1, depth=16, raw=b"\0" + b"\x12\xff" * 6), "x").tolist() == [[[0x12] * 3] * 2]


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
        (b"", "the image has no bytes"),
        (b"\0" * (4 * 4096 * 4096 + 1), "larger than 67108864 bytes"),
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


def test_lenient_settings_of_the_program_around_us_do_not_count(monkeypatch, pictures, encode):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    half = encode(pictures(1, 64, 64)[0], "JPEG")[:1500]
    assert np.asarray(Image.open(io.BytesIO(half))).shape == (64, 64, 3)  # Pillow would take it
    with pytest.raises(InputError, match="damaged"):
        decode(half, "x")
    with pytest.raises(InputError, match="60000×60000 pixels, more than 16777216; make it smaller"):
        decode(png(60_000, 60_000, rows=1), "x")
    assert ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("own", ["ignore", "error", "always"])
def test_filters_of_warnings_neither_count_nor_change(own, recwarn):
    """Pillow warns of a palette's transparency, which is dropped, and of 100 million pixels, which are refused."""
    palette = saved(Image.new("P", (8, 8)), "PNG", transparency=b"\x00\x80")
    with warnings.catch_warnings():
        warnings.simplefilter(own)
        before = [*warnings.filters]
        assert decode(palette, "x").shape == (8, 8)
        with pytest.raises(InputError, match="more than 16777216"):
            decode(png(10_000, 10_000, rows=1), "x")
        assert warnings.filters == before
    assert not recwarn


def test_bad_images_say_where_and_why(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BadImageError) as caught:
        decode(tmp_path / "pipe.png", "here")
    assert (caught.value.where, caught.value.reason) == ("here", "not a file")
    assert str(caught.value) == "here: not a file; remove it"


def test_wrong_png_checksum(pictures, encode):
    data = bytearray(encode(pictures(1)[0]))
    data[-20] ^= 1  # the last bytes of the pixels: their checksum, a CRC of 4, and IEND's 12
    with pytest.raises(InputError, match="here: damaged image"):
        decode(bytes(data), "here")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_animation_is_refused(kind, pictures):
    first, second = (Image.fromarray(array) for array in pictures(2))
    data = saved(first, kind, save_all=True, append_images=[second])
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
