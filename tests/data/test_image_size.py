"""Images of several sizes, brought to one as torchvision does it."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from coprobe.data import load
from coprobe.data.image_size import ImageSize
from coprobe.errors import InputError

SIZES = [(16, 16), (9, 16), (16, 9), (33, 20), (21, 64), (5, 5), (12, 11)]


def as_array(image):
    return np.asarray(image)


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize("side", SIZES, ids=str)
@pytest.mark.parametrize(("size", "shorter"), [(8, 8), (8, 9), (7, 10), (16, 16), (12, 18)])
def test_it_is_what_torchvision_does(size, shorter, side, bicubic, pictures):
    method = InterpolationMode.BICUBIC if bicubic else InterpolationMode.BILINEAR
    image = Image.fromarray(pictures(1, *side)[0])
    expected = transforms.CenterCrop(size)(transforms.Resize(shorter, method)(image))
    made = ImageSize.parse(f"{size}:{shorter}" + ":bicubic" * bicubic).apply(image)
    assert np.array_equal(as_array(made), as_array(expected))
    if shorter == size and not bicubic:
        assert np.array_equal(as_array(ImageSize.parse(str(size)).apply(image)), as_array(expected))


@pytest.mark.parametrize("side", SIZES, ids=str)
@pytest.mark.parametrize("text", ["8x16", "16x8", "7x9", "10x10"])
def test_a_size_that_is_no_square_is_covered_and_cropped(text, side, pictures):
    size = ImageSize.parse(text)
    height, width = size.resized(*side)
    assert height >= size.height
    assert width >= size.width
    assert (height, width) == (size.height, width) or (height, width) == (height, size.width)
    assert height / width == pytest.approx(side[0] / side[1], rel=1 / min(height, width))
    image = Image.fromarray(pictures(1, *side)[0])
    expected = transforms.CenterCrop((size.height, size.width))(transforms.Resize((height, width))(image))
    assert np.array_equal(as_array(size.apply(image)), as_array(expected))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "write N, HxW or N:SHORTER"),
        ("32,32", "write N, HxW"),
        ("-4", "write N, HxW"),
        ("0", "sides have 1 to 4096 pixels"),
        ("5000", "sides have 1 to 4096 pixels"),
        ("224:200", "the shorter side must have at least the pixels that are kept"),
        ("16x32:20", "the shorter side must have at least the pixels that are kept"),
        ("224:256:nearest", "write N, HxW"),
    ],
)
def test_other_words_are_refused(text, message):
    with pytest.raises(InputError, match=rf"^--image-size .*{message}"):
        ImageSize.parse(text)


def test_a_folder_of_several_sizes(tmp_path, pictures, write_folder):
    large, wide = pictures(1, 20, 20)[0], pictures(1, 10, 31)[0]
    write_folder(tmp_path, {"cat/a.png": large, "dog/b.png": wide})
    with pytest.raises(InputError, match=r"one size: commands that probe resize and crop them with --image-size N"):
        load(f"folder:{tmp_path}")
    data = load(f"folder:{tmp_path}", image_size="8:10")
    resize = transforms.Compose([transforms.Resize(10), transforms.CenterCrop(8)])
    for row, array in enumerate((large, wide)):
        expected = as_array(resize(Image.fromarray(array))).transpose(2, 0, 1)
        assert np.array_equal(data.images[row].numpy(), expected)
    said = "images of 8×8 (resized shorter side to 10, bilinear, and cropped at the centre)"
    assert any(said in note for note in data.notes)


def test_images_that_are_decoded_already_are_brought_to_it_alike(svhn_root):
    raw, sized = load("svhn", root=svhn_root), load("svhn", root=svhn_root, image_size="16x8")
    assert sized.image_shape == (3, 16, 8)
    image = Image.fromarray(raw.images[0].permute(1, 2, 0).numpy())
    expected = as_array(ImageSize.parse("16x8").apply(image)).transpose(2, 0, 1)
    assert np.array_equal(sized.images[0].numpy(), expected)
    assert torch.equal(sized.labels, raw.labels)


def test_an_image_of_a_thousand_times_its_height_is_refused(tmp_path, pictures, write_folder):
    write_folder(tmp_path, {"cat/a.png": pictures(1, 1, 30_000)[0], "dog/b.png": pictures(1)[0]})
    with pytest.raises(
        InputError, match=r"a\.png: 30000×1 pixels, too long to be resized; crop it, or pass --skip-bad"
    ):
        load(f"folder:{tmp_path}", image_size="224")
