"""What is news: a thing that an account shows again and again is no evidence again and again.

Bets on the queries of an account multiply only where each tells something new. Forty frames of a film about one odd
product are one odd product. So a statistic is silent where the query looks like one of the account's latest, unless it
is more suspicious than all of those were. A crafted image looks like the photograph that it was crafted from, and is
more suspicious: it speaks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

GRID = 7
"""Cells a side of the thumbnails that are compared."""
LATEST = 32
"""Queries that a new one is compared with."""
ALIKE = 0.1
"""Largest distance between thumbnails of one thing, as a share of the longer one's length. On Fashion-MNIST three of
four frames of a film are closer than 0.07, and one of a hundred different garments of one class closer than 0.096."""

Thumbnails = NDArray[np.uint8]
"""[n, cells]"""


def thumbnails(inputs: NDArray[np.uint8], grid: int = GRID) -> Thumbnails:
    """[n, cells], the mean of each cell of a grid over an image; of each stretch, where inputs are no images.

    Args:
        inputs: [n, channels, height, width] uint8, or of any other shape.
        grid: cells a side.
    """
    if inputs.ndim == 4:
        grey: NDArray[np.float32] = inputs.astype(np.float32).mean(axis=1)
        pooled = _pooled(_pooled(grey, 1, grid), 2, grid)
    else:
        pooled = _pooled(inputs.reshape(len(inputs), -1).astype(np.float32), 1, grid * grid)
    cells: Thumbnails = np.rint(pooled).astype(np.uint8).reshape(len(inputs), -1)
    return cells


def _pooled(values: NDArray[np.float32], axis: int, cells: int) -> NDArray[np.float32]:
    size = values.shape[axis]
    starts = np.unique(np.linspace(0, size, min(cells, size), endpoint=False).astype(int))
    counts = np.diff([*starts, size])
    shape = [1] * values.ndim
    shape[axis] = len(counts)
    sums = np.add.reduceat(values, starts, axis=axis)
    return (sums / counts.reshape(shape)).astype(np.float32)


class Novelty:
    """The latest queries of one account, small."""

    def __init__(self, statistics: int) -> None:
        """
        Args:
            statistics: S, of the detector.
        """
        self._seen: Thumbnails | None = None
        self._scores = np.full((LATEST, statistics), -np.inf, dtype=np.float32)
        self._count = 0

    def news(self, thumbnail: NDArray[np.uint8], scores: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Take in a query; [S], whether each of its scores tells something new.

        Args:
            thumbnail: [cells].
            scores: [S] oriented, larger is more suspicious; NaN where the query has none.
        """
        if self._seen is None:
            self._seen = np.zeros((LATEST, len(thumbnail)), dtype=np.uint8)
        kept = min(self._count, LATEST)
        fresh = np.ones(len(scores), dtype=np.bool_)
        if kept:
            mine, others = thumbnail.astype(np.float32), self._seen[:kept].astype(np.float32)
            longer = np.maximum(np.einsum("ij,ij->i", others, others), mine @ mine)
            difference = others - mine
            alike = np.einsum("ij,ij->i", difference, difference) < ALIKE**2 * longer
            if alike.any():
                fresh = ~(scores <= self._scores[:kept][alike].max(axis=0))
        place = self._count % LATEST
        self._seen[place] = thumbnail
        self._scores[place] = np.where(np.isnan(scores), -np.inf, scores)
        self._count += 1
        return fresh

    def arrays(self) -> dict[str, NDArray[Any]]:
        """As a state keeps it; its size is bounded."""
        seen = np.zeros((LATEST, 0), dtype=np.uint8) if self._seen is None else self._seen
        return {"seen": seen, "scores": self._scores, "count": np.array([self._count], dtype=np.int64)}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]]) -> Novelty:
        """The inverse of `arrays`."""
        novelty = cls(arrays["scores"].shape[1])
        novelty._seen = arrays["seen"].copy() if arrays["seen"].size else None
        novelty._scores, novelty._count = arrays["scores"].copy(), int(arrays["count"][0])
        return novelty
