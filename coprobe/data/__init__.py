"""Data sets as uint8 tensors, and the loader that batches and augments them on the device.

To add a data set, add a module to this folder that registers a reader in `catalog.DATASETS`.
"""

from coprobe.core.registry import discover
from coprobe.data.catalog import DATASETS, RawDataset, default_root, load
from coprobe.data.dataset import Dataset, balanced_prefix, hold_out, title
from coprobe.data.loader import Batch, Loader, draw_augmentation

discover(__name__)

__all__ = [
    "DATASETS",
    "Batch",
    "Dataset",
    "Loader",
    "RawDataset",
    "balanced_prefix",
    "default_root",
    "draw_augmentation",
    "hold_out",
    "load",
    "title",
]
