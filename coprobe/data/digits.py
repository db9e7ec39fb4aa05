"""scikit-learn's handwritten digits, which need no download."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from coprobe.data.catalog import DATASETS, RawDataset
from coprobe.data.dataset import balanced_prefix

TRAIN_IMAGES = 1437
"""80 % of the 1797; the remaining 360 are the test set."""


@DATASETS.register(
    "digits",
    summary="1797 grey handwritten digits 8×8, enlarged to 32×32; part of scikit-learn, no download",
    source="Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998",
)
def digits(root: Path, split: str) -> RawDataset:
    """The digits, one channel of 32×32 (bilinear), grey values 0 … 16 stretched to 0 … 255.

    The training set is the class-balanced prefix of `TRAIN_IMAGES` images (the first 144 of digits 0 … 6 and the
    first 143 of 7 … 9), the test set is the rest.
    """
    raw = _parsed()
    labels = torch.from_numpy(raw.target).long()
    is_train = torch.zeros(len(labels), dtype=torch.bool)
    is_train[balanced_prefix(labels, TRAIN_IMAGES)] = True
    mine = is_train if split == "train" else ~is_train

    grey = torch.from_numpy(raw.images[mine.numpy()]).float().unsqueeze(1) * (255 / 16)
    images = F.interpolate(grey, size=(32, 32), mode="bilinear", align_corners=False).round().to(torch.uint8)
    return RawDataset(labels[mine], tuple(map(str, raw.target_names)), images)


@cache
def _parsed() -> Any:
    """What scikit-learn reads from a compressed table of text, which takes longer than all that is made of it."""
    from sklearn.datasets import load_digits

    return load_digits()
