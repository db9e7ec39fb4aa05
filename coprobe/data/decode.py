"""Image files to arrays, without trusting the files."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from coprobe.data.bounds import cause
from coprobe.data.image_size import ImageSize
from coprobe.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 4096 * 4096
"""Far above what data sets for classification hold; a decoded image then takes at most about 300 MB on the way."""
MAX_BYTES = 4 * MAX_PIXELS
"""No sensible encoding of `MAX_PIXELS` is larger than the raw RGBA pixels."""

# Pillow knows far more formats; one of them (EPS) starts another program.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
# What the decoders raise when they stumble over a damaged file, found by feeding them thousands.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
)
GREY_MODES, PALETTE_MODES = ("1", "L", "LA"), ("P", "PA")
EIGHT_BIT_MODES = (*GREY_MODES, *PALETTE_MODES, "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
# Adam7, the passes of an interlaced PNG: left, top, and the distance between pixels in x and y.
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


class BadImageError(InputError):
    """One image can't be used; `where` it is and the `reason` make the message."""

    def __init__(self, where: str, reason: str, remedy: str = "replace or remove it") -> None:
        super().__init__(f"{where}: {reason}; {remedy}")
        self.where = where
        self.reason = reason


def decode(source: bytes | Path, where: str, size: ImageSize | None = None) -> np.ndarray:
    """Decode one image, to be called in `strict`; palette and CMYK images become RGB, transparency is dropped.

    Of several pictures in one JPEG (MPO, as phones take them: depth, a preview), it is the first, as in every viewer.

    Args:
        source: the encoded image, or the file that holds it.
        where: how errors name the image.
        size: to be brought to; None leaves it as it is.

    Returns:
        uint8, height × width × 3, or height × width if it has a single channel or a palette of greys.

    Raises:
        BadImageError: not a readable image of a known format, cut short, more than `MAX_PIXELS` pixels or `MAX_BYTES`
            bytes, an animation, or more than 8 bits a channel.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        data = source if isinstance(source, bytes) else _read(source, where)
        if not data:
            raise BadImageError(where, "the image has no bytes")
        if len(data) > MAX_BYTES:
            raise BadImageError(where, f"larger than {MAX_BYTES} bytes; an image is expected")
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_header(image, where)
            pixels = _pixels(image, where, size)
            if image.format == "PNG" and _lacks_rows(data):
                raise BadImageError(where, "the PNG has fewer rows than its header says")
            return pixels
    except InputError:
        raise
    except UnidentifiedImageError:
        raise BadImageError(where, f"not an image ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise BadImageError(where, f"more than {MAX_PIXELS} pixels", "make it smaller") from None
    except DAMAGE as error:
        raise BadImageError(where, f"damaged image ({cause(error)})") from None


def _pixels(image: Image, where: str, size: ImageSize | None) -> np.ndarray:
    converted = image.convert("L" if image.mode in GREY_MODES else "RGB")
    if size:
        height, width = size.resized(image.height, image.width)
        if height * width > MAX_PIXELS:
            raise BadImageError(where, f"{image.width}×{image.height} pixels, too long to be resized", "crop it")
        converted = size.apply(converted)
    pixels = np.asarray(converted)
    if image.mode in PALETTE_MODES and (pixels == pixels[:, :, :1]).all():
        return pixels[:, :, 0]
    return pixels


def _read(path: Path, where: str) -> bytes:
    if path.exists() and not path.is_file():  # opening a FIFO would wait for ever
        raise BadImageError(where, "not a file", "remove it")
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


@contextmanager
def strict() -> Iterator[None]:
    """Pillow's settings for untrusted files during the block, whatever the program around us has made of them."""
    from PIL import ImageFile

    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            # They are about metadata, which are not used, and about sizes, which are checked here.
            warnings.filterwarnings("ignore", module="PIL")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _check_header(image: Image, where: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImageError(where, f"{width}×{height} pixels, more than {MAX_PIXELS}", "make it smaller")
    if image.mode not in EIGHT_BIT_MODES:
        raise BadImageError(where, f"pixels of mode {image.mode}", "save it with 8 bits a channel")
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise BadImageError(where, "holds several frames", "save one of them")


def _lacks_rows(png: bytes) -> bool:
    """Whether a PNG holds less than its header promises, which Pillow fills up with black without a word."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", png[16:29])
    bits = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] * depth
    needed = 0
    for left, top, across, down in PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0:
            needed += rows * (1 + (columns * bits + 7) // 8)
    packed = []
    position = 8
    while position + 8 <= len(png):
        size, kind = struct.unpack(">I4s", png[position : position + 8])
        if kind == b"IDAT":
            packed.append(png[position + 8 : position + 8 + size])
        position += size + 12
    pixels = zlib.decompressobj().decompress(b"".join(packed), needed)
    return len(pixels) < needed
