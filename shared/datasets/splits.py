"""Cutting a data set into parts that share no image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shared.datasets.dataset import DatasetError, Source, Splits

SHARES = (4, 1, 1, 1)
"""Of train, calibration, holdout and test: Fashion-MNIST's. An official test set takes the place of the last."""
SEED = 20_213


def digests(images: NDArray[np.uint8]) -> NDArray[np.str_]:
    """[n], the SHA-256 of each image's pixels, in hexadecimal."""
    return np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in images], dtype="<U64")


def cut(source: Source) -> Splits:
    """Shuffle every class with a fixed seed and cut it by `SHARES`; copies of an image stay together.

    An official test set stays whole and in its order; what the rest shares with it is dropped from the rest.

    Raises:
        DatasetError: a class has too few different images to be in every part.
    """
    data = source.train
    content = digests(data.images)
    if source.test is None:
        shares: tuple[int, ...] = SHARES
    else:
        shares = SHARES[:-1]
        own = ~np.isin(content, digests(source.test.images))
        data, content = data[np.flatnonzero(own)], content[own]
    parts = [data[rows] for rows in _deal(source, data.labels, content, shares)]
    train, calibration, holdout = parts[:3]
    test = parts[3] if source.test is None else source.test
    return Splits(train, calibration, holdout, test, source.classes, source.name, source.mirror)


def _deal(
    source: Source, labels: NDArray[np.int64], content: NDArray[np.str_], shares: Sequence[int]
) -> list[NDArray[np.intp]]:
    """Rows of each part."""
    random = np.random.default_rng(SEED)
    _, first, image = np.unique(content, return_index=True, return_inverse=True)
    part = np.empty(len(first), dtype=np.int64)
    for label, name in enumerate(source.classes):
        members = random.permutation(np.flatnonzero(labels[first] == label))
        if len(members) < sum(shares):
            raise DatasetError(
                f"{source.name}: class {name!r} has {len(members)} different images; every class needs at least "
                f"{sum(shares)} to be in every part"
            )
        ends = np.cumsum(shares) * len(members) // sum(shares)
        part[members] = np.searchsorted(ends, np.arange(len(members)), side="right")
    return [random.permutation(np.flatnonzero(part[image] == number)) for number in range(len(shares))]
