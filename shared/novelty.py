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
CLOSE = ALIKE**2
"""The same for squares."""

NOTHING = np.float32(-np.inf)
"""Less suspicious than any score."""

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


_WITHIN = np.tril(np.ones((LATEST, 2 * LATEST), dtype=np.bool_), LATEST - 1) & ~np.tril(
    np.ones((LATEST, 2 * LATEST), dtype=np.bool_), -1
)
"""[LATEST, 2 LATEST], which of as many earlier queries and itself each of LATEST new ones is compared with."""


class Novelty:
    """The latest queries of one account, small."""

    def __init__(self, statistics: int) -> None:
        """
        Args:
            statistics: S, of the detector.
        """
        self._count = 0
        # The latest in order, up to `_end`; new ones are added behind, until the latest move to the front.
        self._end = 0
        self._seen: Thumbnails | None = None
        self._lengths = np.zeros(2 * LATEST, dtype=np.float32)
        self._scores = np.zeros((2 * LATEST, statistics), dtype=np.float32)

    def news(self, thumbnails: Thumbnails, scores: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Take in queries, in order; [m, S], whether each of their scores tells something new.

        Args:
            thumbnails: [m, cells].
            scores: [m, S] oriented, larger is more suspicious; NaN where a query has none.
        """
        # No more at a time than a query is compared with: the cost of each stays the same.
        if len(scores) <= LATEST:
            return self._part(thumbnails, scores)
        starts = range(0, len(scores), LATEST)
        return np.concatenate([self._part(thumbnails[i : i + LATEST], scores[i : i + LATEST]) for i in starts])

    def _part(self, thumbnails: Thumbnails, scores: NDArray[np.float32]) -> NDArray[np.bool_]:
        if self._seen is None:
            self._seen = np.zeros((2 * LATEST, thumbnails.shape[1]), dtype=np.uint8)
        new = len(scores)
        if self._end + new > 2 * LATEST:
            self._move_to_front()
        start, stop = self._end, self._end + new
        kept = min(start, LATEST)
        self._seen[start:stop] = thumbnails
        np.fmax(scores, NOTHING, out=self._scores[start:stop])
        seen = self._seen[start - kept : stop].astype(np.float32)
        # Cells are whole numbers below 256: products and squares are exact, whatever order they are added in.
        mine = seen[kept:]
        np.einsum("ij,ij->i", mine, mine, out=self._lengths[start:stop])
        lengths = self._lengths[start - kept : stop]
        own = lengths[kept:, None]
        distances = mine @ seen.T
        distances *= -2.0
        distances += own
        distances += lengths
        alike = distances < CLOSE * np.maximum(own, lengths)
        alike &= _WITHIN[:new, LATEST - kept : LATEST + new]
        fresh = np.ones(scores.shape, dtype=np.bool_)
        if alike.any():
            known = alike.any(axis=1)
            before = self._scores[start - kept : stop]
            most = np.where(alike[known][:, :, None], before, NOTHING).max(axis=1)
            fresh[known] = ~(scores[known] <= most)
        self._end = stop
        self._count += new
        return fresh

    def _move_to_front(self) -> None:
        assert self._seen is not None
        kept = min(self._end, LATEST)
        for array in (self._seen, self._lengths, self._scores):
            array[:kept] = array[self._end - kept : self._end].copy()
        self._end = kept

    def arrays(self) -> dict[str, NDArray[Any]]:
        """As a state keeps it, each query in its place modulo LATEST; its size is bounded."""
        kept = min(self._end, LATEST)
        cells = 0 if self._seen is None else self._seen.shape[1]
        seen = np.zeros((LATEST, cells), dtype=np.uint8)
        scores = np.full((LATEST, self._scores.shape[1]), NOTHING)
        if self._seen is not None:
            places = (self._count - kept + np.arange(kept)) % LATEST
            seen[places] = self._seen[self._end - kept : self._end]
            scores[places] = self._scores[self._end - kept : self._end]
        return {"seen": seen, "scores": scores, "count": np.array([self._count], dtype=np.int64)}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]]) -> Novelty:
        """The inverse of `arrays`."""
        novelty, count = cls(arrays["scores"].shape[1]), int(arrays["count"][0])
        kept = min(count, LATEST) if arrays["seen"].size else 0
        places = (count - kept + np.arange(kept)) % LATEST
        novelty._count, novelty._end = count, kept
        if kept:
            seen = arrays["seen"][places]
            novelty._seen = np.zeros((2 * LATEST, seen.shape[1]), dtype=np.uint8)
            novelty._seen[:kept] = seen
            novelty._scores[:kept] = arrays["scores"][places]
            novelty._lengths[:kept] = np.square(seen.astype(np.float32)).sum(axis=1)
        return novelty
