import io

import numpy as np
import pytest
from PIL import Image

from coprobe.data import load
from coprobe.errors import InputError


def test_train(tiny_imagenet_root, pictures, encode):
    data = load("tiny-imagenet", "train", root=tiny_imagenet_root)
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert data.classes == ("n01", "n02")
    third = np.asarray(Image.open(io.BytesIO(encode(pictures(4, 64, 64)[2], "JPEG"))))
    assert np.array_equal(data.images[2].permute(1, 2, 0).numpy(), third)


def test_the_test_split_is_the_annotated_validation_set(tiny_imagenet_root, pictures, encode):
    data = load("tiny-imagenet", root=tiny_imagenet_root)
    assert data.labels.tolist() == [1, 0, 1]
    first = np.asarray(Image.open(io.BytesIO(encode(pictures(3, 64, 64, 1)[0], "JPEG"))))
    assert np.array_equal(data.images[0].permute(1, 2, 0).numpy(), first)


@pytest.mark.parametrize(
    ("line", "message"),
    [("val_0.JPEG\tn99\t0\t0\t1\t1", "n99"), ("val_0.JPEG", "unpack"), ("../../x.JPEG\tn01\t0\t0\t1\t1", "names")],
)
def test_bad_annotations(line, message, tiny_imagenet_root):
    (tiny_imagenet_root / "tiny-imagenet-200" / "val" / "val_annotations.txt").write_text(line)
    with pytest.raises(InputError, match=f"not the published layout .*{message}"):
        load("tiny-imagenet", root=tiny_imagenet_root)
