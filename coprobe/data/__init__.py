"""Data sets as tensors, and the loader that batches and augments them on the device.

To add a data set, add a module to this folder that registers a reader in `catalog.DATASETS`.
"""

from coprobe.core.registry import discover
from coprobe.data.catalog import DATASETS, RawDataset, default_root, load
from coprobe.data.dataset import Dataset, balanced_prefix, hold_out, title, unit_floats
from coprobe.data.given import Images, as_dataset, numbered
from coprobe.data.loader import Batch, Loader, draw_augmentation

discover(__name__)

__all__ = [
    "DATASETS",
    "Batch",
    "Dataset",
    "Images",
    "Loader",
    "RawDataset",
    "as_dataset",
    "balanced_prefix",
    "default_root",
    "draw_augmentation",
    "hold_out",
    "load",
    "numbered",
    "title",
    "unit_floats",
]
