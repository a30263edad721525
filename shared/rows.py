"""A growing store of equal rows, kept in chunks, so that a batch writes what is new and not the whole history."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray


@dataclass(frozen=True, slots=True)
class RowsLayout:
    """What a `Rows` holds; part of the detector's parameters, so that a change of it invalidates old states.

    Attributes:
        shape: shape of one row.
        dtype: of one element.
        capacity: rows kept, at least; `eviction_rows` are evicted at once when the rest still holds so many.
        chunk_rows: rows a chunk; a batch that adds rows rewrites the last chunk.
    """

    shape: tuple[int, ...]
    dtype: DTypeLike
    capacity: int
    chunk_rows: int = 16

    def __post_init__(self) -> None:
        if self.capacity < 1 or self.chunk_rows < 1:
            raise ValueError(f"capacity {self.capacity} and chunk_rows {self.chunk_rows} must be positive")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))

    @property
    def eviction_rows(self) -> int:
        """Rows evicted at a time: whole chunks, and an eighth of the capacity, so that moving the rest up is rare."""
        return max(self.capacity // 8 // self.chunk_rows, 1) * self.chunk_rows

    @property
    def most_rows(self) -> int:
        """Rows kept just before an eviction."""
        return self.capacity + self.eviction_rows

    @property
    def largest_bytes(self) -> int:
        """The most that the rows of one account can take, in bytes."""
        return (self.most_rows + self.chunk_rows) * self.row_bytes


@dataclass(frozen=True, slots=True)
class RowsChanges:
    """What has to be stored so that `Rows.restore` finds the rows as they are."""

    counters: NDArray[np.int64]
    """[3]: first row kept, end, and the chunk below which all are surely deleted."""
    written: dict[int, bytes]
    deleted: range


class Rows:
    """Rows numbered from 0 in the order of their arrival; `first` is the oldest that is still kept.

    Rows never change once added. Eviction is first in, first out, whole chunks at a time.
    """

    def __init__(self, layout: RowsLayout) -> None:
        self.layout = layout
        self._most_rows = layout.most_rows
        self.first = 0
        self.end = 0
        self._written_end = 0
        self._deleted_below = 0
        self._buffer = np.empty((layout.chunk_rows, *layout.shape), dtype=layout.dtype)

    def __len__(self) -> int:
        return self.end - self.first

    @property
    def array(self) -> NDArray[np.generic]:
        """[len(self), *shape], the rows that are kept, oldest first: a view, valid until the next `append`."""
        return self._buffer[: len(self)]

    def append(self, row: NDArray[np.generic]) -> NDArray[np.generic]:
        """Add one row and return the oldest, [m, *shape], that were evicted for it; m is mostly 0."""
        return self.extend(row[None])

    @property
    def room(self) -> int:
        """Rows that can be added before any is evicted."""
        return self._most_rows - (self.end - self.first)

    def extend(self, rows: NDArray[np.generic]) -> NDArray[np.generic]:
        """Add [n, *shape] rows and return the oldest, [m, *shape], that were evicted for them."""
        if len(rows) <= self.room:
            self._add(rows)
            return self._buffer[:0]
        evicted = []
        while len(rows):
            if not self.room:
                evicted.append(self._evict())
            room = self.room
            self._add(rows[:room])
            rows = rows[room:]
        return np.concatenate(evicted)

    def _add(self, rows: NDArray[np.generic]) -> None:
        kept = self.end - self.first
        needed = kept + len(rows)
        if needed > len(self._buffer):
            size = len(self._buffer)
            while size < needed:
                size *= 2
            grown = np.empty((size, *self.layout.shape), dtype=self.layout.dtype)
            grown[:kept] = self._buffer[:kept]
            self._buffer = grown
        self._buffer[kept:needed] = rows
        self.end += len(rows)

    def _evict(self) -> NDArray[np.generic]:
        count, kept = self.layout.eviction_rows, len(self)
        evicted = self._buffer[:count].copy()
        self._buffer[: kept - count] = self._buffer[count:kept].copy()
        self.first += count
        return evicted

    def take_changes(self) -> RowsChanges:
        """What has changed since the last call (or since `restore`); the caller must store it.

        A chunk must be written before, and deleted after, the counters that come with it: a crash in between leaves
        either the old rows or the new ones readable. Chunks whose deletion a crash may have cut short are named
        again after `restore`.
        """
        size = self.layout.chunk_rows
        written: dict[int, bytes] = {}
        if self.end > self._written_end:
            for chunk in range(max(self._written_end, self.first) // size, -(-self.end // size)):
                rows = self._buffer[chunk * size - self.first : min((chunk + 1) * size, self.end) - self.first]
                written[chunk] = rows.tobytes()
        self._written_end = self.end
        counters = np.array([self.first, self.end, self._deleted_below], dtype=np.int64)
        deleted = range(self._deleted_below, self.first // size)
        self._deleted_below = deleted.stop
        return RowsChanges(counters, written, deleted)

    @staticmethod
    def needed_chunks(layout: RowsLayout, counters: NDArray[np.int64]) -> range:
        """Numbers of the chunks that hold the rows that `counters` speak of."""
        first, end, _ = (int(value) for value in counters)
        return range(first // layout.chunk_rows, -(-end // layout.chunk_rows))

    @classmethod
    def restore(cls, layout: RowsLayout, counters: NDArray[np.int64], chunks: dict[int, bytes]) -> Rows:
        """Rebuild from `counters` and the chunks that `needed_chunks` named.

        A chunk may be longer than the counters say: it was written and the crash came before the counters.

        Raises:
            ValueError: no rows of this layout have such counters, or a chunk is missing or shorter than they say.
        """
        rows = cls(layout)
        first, end, deleted_below = (int(value) for value in counters) if len(counters) == 3 else (-1, -1, -1)
        within = 0 <= deleted_below * layout.chunk_rows <= first <= end <= first + layout.most_rows
        if not within or first % layout.chunk_rows:
            raise ValueError(f"counters {counters.tolist()} are of no rows with {layout}")
        rows.first, rows.end, rows._deleted_below = first, end, deleted_below
        kept = end - first
        capacity = layout.chunk_rows
        while capacity < kept:
            capacity *= 2
        rows._buffer = np.empty((capacity, *layout.shape), dtype=layout.dtype)
        for chunk in cls.needed_chunks(layout, counters):
            start = chunk * layout.chunk_rows
            count = min(start + layout.chunk_rows, end) - start
            data = chunks.get(chunk)
            if data is None or len(data) < count * layout.row_bytes:
                raise ValueError(f"chunk {chunk} is missing or shorter than its {count} rows")
            values = np.frombuffer(data, dtype=layout.dtype, count=count * int(np.prod(layout.shape, dtype=np.int64)))
            rows._buffer[start - first : start - first + count] = values.reshape(count, *layout.shape)
        rows._written_end = end
        return rows
