"""Rows keep what is newest, write only what is new, and survive a crash at any point of a write."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shared.rows import Rows, RowsChanges, RowsLayout

CAPACITIES = st.integers(1, 40)
CHUNKS = st.integers(1, 5)


@dataclass
class Store:
    """What a table keeps of one `Rows`: counters and chunks, written one by one."""

    counters: np.ndarray = field(default_factory=lambda: np.zeros(3, dtype=np.int64))
    chunks: dict[int, bytes] = field(default_factory=dict)

    def writes(self, changes: RowsChanges, chunk_order: list[int]) -> list[tuple[str, int]]:
        """The single writes in one of the orders that are allowed: chunks, counters, deletions."""
        return [("write", c) for c in chunk_order] + [("counters", 0)] + [("delete", c) for c in changes.deleted]

    def apply(self, changes: RowsChanges, write: tuple[str, int]) -> None:
        kind, chunk = write
        if kind == "write":
            self.chunks[chunk] = changes.written[chunk]
        elif kind == "counters":
            self.counters = changes.counters.copy()
        else:
            self.chunks.pop(chunk, None)

    def restore(self, layout: RowsLayout) -> Rows:
        """What a worker finds after a crash: only the chunks that the counters ask for."""
        needed = {c: self.chunks[c] for c in Rows.needed_chunks(layout, self.counters) if c in self.chunks}
        return Rows.restore(layout, self.counters, needed)


class RowsMachine(RuleBasedStateMachine):
    """Rows beside a plain list, stored and restored at any time, with crashes between any two single writes."""

    @initialize(capacity=CAPACITIES, chunk_rows=CHUNKS)
    def begin(self, capacity: int, chunk_rows: int) -> None:
        self.layout = RowsLayout(shape=(2,), dtype=np.int32, capacity=capacity, chunk_rows=chunk_rows)
        self.rows = Rows(self.layout)
        self.store = Store()
        self.all: list[int] = []
        self.stored = 0

    @rule(count=st.integers(1, 12))
    def append(self, count: int) -> None:
        for _ in range(count):
            before = self.rows.first
            evicted = self.rows.append(np.array([len(self.all), -len(self.all)], dtype=np.int32))
            self.all.append(len(self.all))
            assert self.rows.first == before + len(evicted)
            assert len(evicted) in (0, self.layout.eviction_rows)
            assert evicted[:, 0].tolist() == self.all[before : self.rows.first]

    @rule(count=st.integers(0, 120))
    def extend(self, count: int) -> None:
        before, numbers = self.rows.first, np.arange(len(self.all), len(self.all) + count, dtype=np.int32)
        assert 0 <= self.rows.room <= self.layout.most_rows
        evicted = self.rows.extend(np.stack([numbers, -numbers], axis=1))
        self.all += numbers.tolist()
        assert self.rows.first == before + len(evicted)
        assert evicted[:, 0].tolist() == self.all[before : self.rows.first]

    @rule(data=st.data())
    def save(self, data: st.DataObject) -> None:
        changes = self.rows.take_changes()
        for write in self.store.writes(changes, data.draw(st.permutations(sorted(changes.written)))):
            self.store.apply(changes, write)
        self.stored = len(self.all)

    @rule(data=st.data())
    def crash_in_the_middle_of_a_save(self, data: st.DataObject) -> None:
        changes = self.rows.take_changes()
        writes = self.store.writes(changes, data.draw(st.permutations(sorted(changes.written))))
        done = data.draw(st.integers(0, len(writes)))
        for write in writes[:done]:
            self.store.apply(changes, write)
        if ("counters", 0) in writes[:done]:
            self.stored = len(self.all)
        self.rows = self.store.restore(self.layout)
        del self.all[self.stored :]

    @rule()
    def crash_between_saves(self) -> None:
        self.rows = self.store.restore(self.layout)
        del self.all[self.stored :]

    @invariant()
    def holds_the_newest_in_order(self) -> None:
        rows, layout = self.rows, self.layout
        assert rows.end == len(self.all)
        assert len(rows) >= min(len(self.all), layout.capacity)
        assert len(rows) <= layout.most_rows
        expected = np.array([[value, -value] for value in self.all[rows.first :]], dtype=np.int32).reshape(-1, 2)
        np.testing.assert_array_equal(rows.array, expected)

    @invariant()
    def what_is_stored_can_be_read_at_any_time(self) -> None:
        restored = self.store.restore(self.layout)
        assert restored.array[:, 0].tolist() == list(range(restored.first, self.stored))

    @invariant()
    def the_store_stays_within_its_bound(self) -> None:
        """Garbage that a crash leaves is named again: it never adds up. One save's deletions may still be open."""
        needed = set(Rows.needed_chunks(self.layout, self.store.counters))
        kept = sum(len(self.store.chunks[chunk]) for chunk in needed)
        assert kept <= self.layout.largest_bytes
        left = {chunk for chunk in self.store.chunks if chunk < min(needed, default=0)}
        assert all(chunk >= self.store.counters[2] for chunk in left)


TestRowsAgainstAList = RowsMachine.TestCase
TestRowsAgainstAList.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(capacity=CAPACITIES, chunk_rows=CHUNKS, total=st.integers(0, 60), cuts=st.lists(st.integers(0, 60), max_size=6))
@settings(deadline=None)
def test_cutting_anywhere_leaves_the_same_rows_and_the_same_store(
    capacity: int, chunk_rows: int, total: int, cuts: list[int]
) -> None:
    layout = RowsLayout(shape=(), dtype=np.uint64, capacity=capacity, chunk_rows=chunk_rows)

    def run(cuts: set[int], restart: bool) -> tuple[list[int], int, Store]:
        rows, store = Rows(layout), Store()
        for value in range(total):
            rows.append(np.array(value, dtype=np.uint64))
            if value in cuts or value == total - 1:
                changes = rows.take_changes()
                for write in store.writes(changes, sorted(changes.written)):
                    store.apply(changes, write)
                rows = store.restore(layout) if restart else rows
        return rows.array.tolist(), rows.first, store

    straight, cut, restarted = run(set(), False), run(set(cuts), False), run(set(cuts), True)
    assert straight[:2] == cut[:2] == restarted[:2]
    needed = Rows.needed_chunks(layout, straight[2].counters)
    assert [straight[2].chunks[c] for c in needed] == [cut[2].chunks[c] for c in needed]
    assert [straight[2].chunks[c] for c in needed] == [restarted[2].chunks[c] for c in needed]


def filled(count: int, layout: RowsLayout) -> Rows:
    rows = Rows(layout)
    for value in range(count):
        rows.append(np.full(layout.shape, value, dtype=layout.dtype))
    return rows


LAYOUT = RowsLayout(shape=(3,), dtype=np.float32, capacity=10, chunk_rows=4)


def test_a_save_writes_what_is_new_and_not_the_whole_history() -> None:
    rows = filled(9, LAYOUT)
    rows.take_changes()
    rows.append(np.full(3, 9.0, dtype=np.float32))
    assert set(rows.take_changes().written) == {2}
    assert rows.take_changes().written == {}


def test_deletions_that_a_crash_cut_short_are_named_again() -> None:
    rows = filled(15, LAYOUT)
    changes = rows.take_changes()
    assert list(changes.deleted) == [0]
    restored = Rows.restore(LAYOUT, changes.counters, changes.written)
    assert list(restored.take_changes().deleted) == [0]
    assert list(restored.take_changes().deleted) == []


def test_the_view_of_the_rows_is_no_copy() -> None:
    rows = filled(3, LAYOUT)
    assert np.shares_memory(rows.array, rows.array)


@pytest.mark.parametrize("chunks", [{}, {0: b""}, {0: bytes(4 * 12), 1: bytes(11)}])
def test_a_missing_or_short_chunk_is_refused_by_its_number(chunks: dict[int, bytes]) -> None:
    with pytest.raises(ValueError, match=r"chunk [01] is missing or shorter"):
        Rows.restore(LAYOUT, np.array([0, 5, 0]), chunks)


@pytest.mark.parametrize("counters", [[0, -1, 0], [5, 4, 0], [2, 8, 0], [4, 8, 2], [0, 15, 0], [0, 4, -1], [0, 4]])
def test_counters_that_no_rows_of_this_layout_can_have_are_refused(counters: list[int]) -> None:
    chunks = {chunk: bytes(4 * LAYOUT.row_bytes) for chunk in range(5)}
    with pytest.raises(ValueError, match="counters"):
        Rows.restore(LAYOUT, np.array(counters), chunks)


@pytest.mark.parametrize(("capacity", "chunk_rows"), [(0, 4), (4, 0), (-1, 4)])
def test_a_layout_that_holds_nothing_is_refused(capacity: int, chunk_rows: int) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        RowsLayout(shape=(), dtype=np.uint8, capacity=capacity, chunk_rows=chunk_rows)
