import numpy as np
import pytest

from coprobe.data import load
from coprobe.errors import InputError


def test_svhn(svhn_root, pictures):
    for seed, split in enumerate(("train", "test")):
        data = load("svhn", split, root=svhn_root)
        assert data.labels.tolist() == [0, seed + 1, 9]  # the file calls the digit 0 "10"
        assert data.classes == tuple("0123456789")
        assert np.array_equal(data.images.numpy(), pictures(3, 32, 32, seed).transpose(0, 3, 1, 2))


def test_a_changed_file(svhn_root):
    (svhn_root / "test_32x32.mat").write_bytes(b"something else")
    with pytest.raises(InputError, match="checksum differs"):
        load("svhn", root=svhn_root)
    assert len(load("svhn", "train", root=svhn_root)) == 3
