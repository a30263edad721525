"""pHash of many images at once, bit for bit what imagehash computes of each (AMAO, section 4.4.2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fftpack

HASH_BITS = 64
_SIDE = 8
"""Of the square of lowest frequencies; one bit each."""
_PICTURE_SIDE = 4 * _SIDE
"""Of the picture whose frequencies are taken: imagehash's `highfreq_factor` is 4."""


def perceptual_hashes(inputs: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """[n] pHash of [n, channels, height, width] images; colour counts for nothing.

    Pillow shrinks image by image, since no other resampling gives its bits; the frequencies are taken of all at once.

    Raises:
        ValueError: the views are no images of 1 or 3 channels.
    """
    if inputs.ndim != 4 or inputs.shape[1] not in (1, 3):
        raise ValueError(f"views of shape {inputs.shape[1:]} are no images of 1 or 3 channels, height and width")
    pictures = inputs[:, 0] if inputs.shape[1] == 1 else np.moveaxis(inputs, 1, -1)
    small = np.empty((len(inputs), _PICTURE_SIDE, _PICTURE_SIDE), dtype=np.uint8)
    for row, picture in enumerate(pictures):
        image = Image.fromarray(picture).convert("L")
        small[row] = np.asarray(image.resize((_PICTURE_SIDE, _PICTURE_SIDE), Image.Resampling.LANCZOS))
    lowest = fftpack.dct(fftpack.dct(small, axis=1)[:, :_SIDE], axis=2)[:, :, :_SIDE].reshape(len(inputs), HASH_BITS)
    # The median of 64: what numpy.median computes, without its cost for a row.
    ordered = np.partition(lowest, (HASH_BITS // 2 - 1, HASH_BITS // 2), axis=1)
    median = ordered[:, HASH_BITS // 2 - 1 : HASH_BITS // 2 + 1].mean(axis=1, keepdims=True)
    hashes: NDArray[np.uint64] = np.packbits(lowest > median, axis=1).view(">u8")[:, 0].astype(np.uint64)
    return hashes
