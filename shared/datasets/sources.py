"""Where data comes from: Fashion-MNIST and the digits that `make data` fetches, or any path in a usual format."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from shared.datasets.dataset import DEFAULT_FOLDER, Dataset, DatasetError, Source, Splits
from shared.datasets.formats import EXPECTED, SMALLEST_SIDE, read_idx, read_source, resized
from shared.datasets.splits import cut

FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip
SHOES = (5, 7, 9)
"""Classes of Fashion-MNIST that are shoes."""


def load_fashion_mnist(split: str, folder: Path = DEFAULT_FOLDER) -> Dataset:
    """The split `train` (60,000) or `test` (10,000) of Fashion-MNIST.

    Raises:
        DatasetError: the files are missing or malformed.
    """
    name = {"train": "train", "test": "t10k"}[split]
    home = folder / "fashion-mnist"
    try:
        images = read_idx(home / f"{name}-images-idx3-ubyte.gz")
        labels = read_idx(home / f"{name}-labels-idx1-ubyte.gz")
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise DatasetError(f"Fashion-MNIST is not usable in {home} ({error}); run `make data`") from error
    if len(images) != len(labels) or images.shape[1:] != (28, 28):
        raise DatasetError(f"{home}: {images.shape} images and {labels.shape} labels do not fit")
    return Dataset(images[:, None].copy(), labels.astype(np.int64))


def load_splits(folder: Path = DEFAULT_FOLDER) -> Splits:
    """Fashion-MNIST, shuffled once with a fixed seed and cut. It holds no image twice.

    Raises:
        DatasetError: the files are missing or malformed.
    """
    train = load_fashion_mnist("train", folder)
    order = np.random.default_rng(20_211).permutation(len(train))
    return Splits(
        train=train[order[:40_000]],
        calibration=train[order[40_000:50_000]],
        holdout=train[order[50_000:]],
        test=load_fashion_mnist("test", folder),
        classes=FASHION_CLASSES,
        name="fashion-mnist",
        mirror=True,
    )


def load_digits(folder: Path = DEFAULT_FOLDER) -> Dataset:
    """Handwritten digits: to a model of clothes, natural data from elsewhere. Shuffled with a fixed seed.

    Raises:
        DatasetError: the files are missing or malformed.
    """
    path = folder / "digits" / "digits.npz"
    try:
        with np.load(path, allow_pickle=False) as archive:
            return Dataset(archive["images"], archive["labels"])
    except (OSError, ValueError, KeyError) as error:
        raise DatasetError(f"the digits are not usable at {path} ({error}); run `make data`") from error


def _digits(folder: Path) -> Splits:
    return cut(Source("digits", tuple("0123456789"), load_digits(folder), None, mirror=False))


SOURCES: Mapping[str, Callable[[Path], Splits]] = {"fashion-mnist": load_splits, "digits": _digits}
"""What has a name; everything else is a path."""


def load_source(
    name: str, folder: Path = DEFAULT_FOLDER, side: int | None = None, mirror: bool | None = None
) -> Splits:
    """A data set by its name or its path, cut.

    Args:
        name: of `SOURCES`, or the path of a folder or file in one of the formats that `shared.datasets.formats` reads.
        folder: where the named ones are.
        side: scale and crop images to squares of so many pixels.
        mirror: whether mirror images are of the same class; by default true of Fashion-MNIST and CIFAR-10 alone.

    Raises:
        DatasetError: the data is missing or malformed; the message says what to do.
    """
    if side is not None and side < SMALLEST_SIDE:
        raise DatasetError(f"a side of {side} pixels is too small; at least {SMALLEST_SIDE} are needed")
    if load := SOURCES.get(name):
        splits = load(folder)
        if side is not None:
            splits = _resized(splits, side)
    elif Path(name).exists():
        splits = cut(read_source(Path(name), side))
    else:
        raise DatasetError(f"{name}: neither {' nor '.join(SOURCES)} nor a path that exists; {EXPECTED}")
    return splits if mirror is None else dataclasses.replace(splits, mirror=mirror)


def _resized(splits: Splits, side: int) -> Splits:
    def scaled(part: Dataset) -> Dataset:
        return Dataset(resized(part.images, side), part.labels)

    return dataclasses.replace(
        splits,
        train=scaled(splits.train),
        calibration=scaled(splits.calibration),
        holdout=scaled(splits.holdout),
        test=scaled(splits.test),
    )
