"""The hash is imagehash's pHash, bit for bit, of one image and of many at once."""

from __future__ import annotations

import imagehash
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from services.inference.perceptual_hash import perceptual_hashes
from shared.datasets import load_splits


def by_imagehash(pictures: NDArray[np.uint8]) -> list[str]:
    one_channel = pictures.shape[1] == 1
    return [str(imagehash.phash(Image.fromarray(p[0] if one_channel else np.moveaxis(p, 0, -1)))) for p in pictures]


def hexadecimal(hashes: NDArray[np.uint64]) -> list[str]:
    return [f"{int(value):016x}" for value in hashes]


@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 7),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    levels=st.integers(1, 256),
)
def test_images_of_any_size_and_number_of_shades_hash_as_by_imagehash(
    seed: int, count: int, channels: int, height: int, width: int, levels: int
) -> None:
    shape = (count, channels, height, width)
    pictures = np.random.default_rng(seed).integers(0, levels, size=shape, dtype=np.uint8)
    assert hexadecimal(perceptual_hashes(pictures)) == by_imagehash(pictures)


def test_photographs_hash_as_by_imagehash_alone_and_together() -> None:
    pictures = load_splits().test.images[:300]
    together = hexadecimal(perceptual_hashes(pictures))
    assert together == by_imagehash(pictures)
    assert together == [hexadecimal(perceptual_hashes(pictures[i : i + 1]))[0] for i in range(len(pictures))]


def test_no_images_have_no_hashes() -> None:
    assert len(perceptual_hashes(np.zeros((0, 1, 28, 28), dtype=np.uint8))) == 0


def test_views_that_are_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        perceptual_hashes(np.zeros((1, 5), dtype=np.uint8))
