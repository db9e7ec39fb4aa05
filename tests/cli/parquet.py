"""Parquet files as the Hub lays them out."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def write_grey(path: Path, images: Sequence[np.ndarray], labels: Sequence[int]) -> None:
    """Grey PNGs of mode L with their labels."""
    structs = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        structs.append({"bytes": file.getvalue()})
    pq.write_table(pa.table({"image": pa.array(structs), "label": labels}), path)
