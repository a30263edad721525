"""Made-up accounts for the detectors' suite: smooth pictures of ten kinds, and a classifier that knows them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHAPE = (1, 28, 28)
CLASSES = 10


@dataclass(frozen=True, slots=True)
class Stream:
    """One account's queries.

    Attributes:
        inputs: [n, 1, 28, 28] uint8.
        logits: [n, 10] float32.
    """

    inputs: NDArray[np.uint8]
    logits: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.inputs)


def _smooth(random: np.random.Generator, count: int) -> NDArray[np.float64]:
    """[count, 28, 28] fields of a few pixels' width, mean 0 and standard deviation about 1."""
    return random.normal(size=(count, 7, 7)).repeat(4, axis=1).repeat(4, axis=2)


_PROTOTYPES = _smooth(np.random.default_rng(11), CLASSES)


def classify(inputs: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[n, 10] logits of a linear classifier: correlation with each kind's prototype."""
    pixels = inputs.reshape(len(inputs), -1) / 255.0
    weights = _PROTOTYPES.reshape(CLASSES, -1)
    return ((pixels - 0.3) @ weights.T / 4.0).astype(np.float32)


def stream(inputs: NDArray[np.uint8]) -> Stream:
    """The inputs with the classifier's answers."""
    return Stream(inputs, classify(inputs))


def honest(seed: int, queries: int) -> Stream:
    """Different pictures of all kinds, lit a little differently in each account."""
    random = np.random.default_rng([1, seed])
    kinds = random.integers(CLASSES, size=queries)
    light = random.uniform(0.25, 0.32)
    pixels = light + 0.1 * _PROTOTYPES[kinds] + 0.06 * _smooth(random, queries)
    pixels += random.normal(0.0, 0.01, pixels.shape)
    return stream(_images(pixels))


def noise(seed: int, queries: int) -> Stream:
    """Pixels thrown by dice: the grossest of foreign data."""
    random = np.random.default_rng([2, seed])
    return stream(random.integers(0, 256, (queries, *SHAPE), dtype=np.uint8))


def crafted(seed: int, queries: int) -> Stream:
    """Short steps along the classifier's gradient from three honest pictures, as Jacobian augmentation sends them."""
    random = np.random.default_rng([3, seed])
    seeds = honest(seed + 1000, 3).inputs[:, 0] / 255.0
    steps = np.sign(_PROTOTYPES[random.integers(CLASSES, size=queries)])
    pixels = seeds[random.integers(3, size=queries)] + random.uniform(0.005, 0.03, (queries, 1, 1)) * steps
    pixels += random.normal(0.0, 0.003, pixels.shape)
    return stream(_images(pixels))


def _images(pixels: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.rint(np.clip(pixels, 0.0, 1.0) * 255).astype(np.uint8)[:, None]
