import numpy as np
import torch
from sklearn.datasets import load_digits

from coprobe.data import balanced_prefix, load


def test_split_sizes_and_balance():
    train, test = load("digits", "train"), load("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.labels.bincount().tolist() == [144] * 7 + [143] * 3
    assert (train.labels.bincount() + test.labels.bincount()).tolist() == np.bincount(load_digits().target).tolist()
    assert train.image_shape == (1, 32, 32)
    assert train.classes == tuple("0123456789")


def test_pixels_are_the_bilinear_enlargement():
    train = load("digits", "train")
    raw = load_digits()
    row = int(balanced_prefix(torch.from_numpy(raw.target), 1437)[100])
    small = raw.images[row] * 255 / 16
    # In an enlargement by 4, output pixel i lies at (i + 0.5) / 4 - 0.5 of the original, clamped to its edges.
    at = ((np.arange(32) + 0.5) / 4 - 0.5).clip(0, 7)
    low = np.minimum(np.floor(at).astype(int), 6)
    weights = np.zeros((32, 8))
    weights[np.arange(32), low] = 1 - (at - low)
    weights[np.arange(32), low + 1] += at - low
    assert np.abs(train.images[100, 0].numpy() - weights @ small @ weights.T).max() <= 0.5001
    assert train.images.max() == 255
