import pickle

import numpy as np
import pytest

from coprobe.data import load
from coprobe.errors import InputError


def test_cifar10(cifar10_root, pictures):
    train, test = load("cifar10", "train", root=cifar10_root), load("cifar10", root=cifar10_root)
    assert (len(train), len(test), train.image_shape) == (20, 4, (3, 32, 32))
    assert test.labels.tolist() == [5, 9, 0, 1]
    assert np.array_equal(test.images.numpy(), pictures(4, 32, 32, 5).transpose(0, 3, 1, 2))
    assert test.classes == tuple(f"thing{i}" for i in range(10))
    assert (test.name, test.split) == ("cifar10", "test")


def test_cifar100_has_fine_labels(cifar100_root, pictures):
    test = load("cifar100", root=cifar100_root)
    assert test.labels.tolist() == [99, 3, 0, 1]
    assert test.classes[99] == "fine99"
    assert np.array_equal(test.images.numpy(), pictures(4, 32, 32, 1).transpose(0, 3, 1, 2))


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle with a wrong checksum was opened",))


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_changed_pickle_is_refused_unopened(name, cifar10_root):
    (cifar10_root / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match="checksums differ"):
        load("cifar10", root=cifar10_root)


def test_an_incomplete_folder(cifar10_root):
    (cifar10_root / "cifar-10-batches-py" / "data_batch_1").unlink()
    with pytest.raises(InputError, match="incomplete"):
        load("cifar10", root=cifar10_root)
