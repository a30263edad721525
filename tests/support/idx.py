"""Files as the MNIST family is published."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np


def write_idx(path: Path, array: np.ndarray, compressed: bool = True) -> None:
    """Magic, sizes (big-endian), bytes."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wb") if compressed else path.open("wb") as file:
        file.write(header + array.astype(np.uint8).tobytes())
