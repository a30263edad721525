"""What a data set is to everybody: labelled images, cut into four parts that share none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DEFAULT_FOLDER = Path("data")


class DatasetError(RuntimeError):
    """Data is missing or malformed; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Labelled images.

    Attributes:
        images: [n, channels, height, width] uint8.
        labels: [n] int64.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | NDArray[np.intp]) -> Dataset:
        return Dataset(self.images[rows], self.labels[rows])


@dataclass(frozen=True, slots=True)
class Source:
    """A data set as it was published.

    Attributes:
        name: of the data set, and of a model trained on it; letters, digits, dots, dashes and underscores.
        classes: names, by label.
        train: all images but the official test set.
        test: the official test set, where there is one.
        mirror: whether an image and its mirror image are of the same class, as with clothes and unlike digits.
    """

    name: str
    classes: tuple[str, ...]
    train: Dataset
    test: Dataset | None
    mirror: bool


@dataclass(frozen=True, slots=True)
class Splits:
    """A data set cut so that training, calibration and demonstration never share an image."""

    train: Dataset
    """Networks learn from these."""
    calibration: Dataset
    """Thresholds, profiles and the discount come from these."""
    holdout: Dataset
    """The evidence's threshold and the reported false-positive rates come from these."""
    test: Dataset
    """The demo's clients, honest and attacking, send these."""
    classes: tuple[str, ...]
    """Names, by label."""
    name: str
    """Of the data set, and of a model trained on it."""
    mirror: bool
    """Whether an image and its mirror image are of the same class."""
